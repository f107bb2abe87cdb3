"""Compiles the engine's programs with the real TPU compiler and reports bytes, temporaries, HBM and estimated time.

Requires libtpu, but no TPU.

    python benchmarks/tpu_programs.py --model 2b --chip v5e [--quantize int8] [--json]

Every program is compiled for one chip like the runner compiles it, in bfloat16, with the state pool donated. Decode is
greedy, since the compiler counts all bytes of a branch that is rarely taken. `floor_bytes` is what must move: every
weight once (in prefill only the embedding's rows that are looked up) and, in decode, the filled part of every slot's
state once. A custom call counts by its `CostEstimate`. One compiler option excludes moves between on-chip memories from
the count.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
}

import jax
import jax.numpy as jnp
import orjson
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table
from roost.engine.checkpoint.source import open_model
from roost.engine.model.config import PRESETS, ModelConfig
from roost.engine.model.griffin import abstract_model
from roost.engine.platform import TPU, Platform
from roost.engine.roofline import DEVICES
from roost.engine.worker import steps
from roost.engine.worker.programs import new_pool
from roost.engine.worker.transfer import prefill_input
from roost.kernels.window_attention.pallas_tpu import decode_attention_tpu

TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
COUNT_HBM_ONLY = {f"xla_{chip}_vmem_memory_space_assignment": "false" for chip in ("vf", "gf")}
"""Chips under the compiler's names of v5e and v6e."""

BF16 = jnp.dtype("bfloat16")
QUARTER = 0.25
PROMPT = 2048

OFFICIAL = {
    ("2b", "v5e", "decode", 8): (5.78e9, 7.8e-3),
    ("2b", "v5e", "decode", 128): (8.94e9, 12.1e-3),
    ("2b", "v5e", "decode", 512): (19.13e9, 29.9e-3),
    ("2b", "v5e", "prefill", 1): (22.24e9, 68.5e-3),
}
"""Official Flax programs (recurrentgemma 1.0.1, native scan, donated cache), compiled and counted in the same way:
bytes accessed and `optimal_seconds`. They read whole rings, so a ring filled by a quarter costs the same.
"""


@dataclass(frozen=True)
class Measure:
    """One program according to the compiler: bytes, and seconds by its own estimate."""

    program: str
    rows: int
    window: str
    floor_bytes: int
    bytes_accessed: int
    temp_bytes: int
    hbm_bytes: int
    optimal_seconds: float
    custom_calls: int

    @property
    def tokens(self) -> int:
        """Number of tokens that one run of the program prefills or generates."""
        return self.rows if self.program == "decode" else PROMPT


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="2b", help="2b, 9b, or what `random:` takes")
    arguments.add_argument("--chip", choices=TOPOLOGIES, default="v5e")
    arguments.add_argument("--quantize", choices=["int8"], help="matrices in int8")
    arguments.add_argument("--rows", type=int, nargs="*", default=[8, 128, 512], help="slots of the decode programs")
    arguments.add_argument("--json", action="store_true", help="one line per program")
    options = arguments.parse_args()
    config = PRESETS.get(options.model) or open_model(f"random:{options.model}").config
    measures = []
    matrices = jnp.dtype(options.quantize or BF16)
    for measure in measure_all(config, matrices, options.chip, options.rows):
        measures.append(measure)
        if options.json:
            print(orjson.dumps(asdict(measure)).decode(), flush=True)
        else:
            print(f"{measure.program} x {measure.rows}, {measure.window} windows: compiled", file=sys.stderr)
    if not options.json:
        Console(width=160).print(as_table(measures, options.model, options.chip, options.quantize))


def measure_all(config: ModelConfig, matrices: jnp.dtype, chip_name: str, rows: list[int]) -> Iterator[Measure]:
    """Compiles every program, the fastest first; matrices have the given type, all else is bfloat16."""
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGIES[chip_name], chips_per_host_bounds=(2, 2, 1)
    )
    chip = SingleDeviceSharding(topology.devices[0])
    for count in rows:
        yield measure_decode(config, matrices, chip, count, "full")
    if rows:
        yield measure_decode(config, matrices, chip, max(rows), "quarter")
    yield measure_prefill(config, matrices, chip, PROMPT)


def measure_decode(
    config: ModelConfig, matrices: jnp.dtype, chip: SingleDeviceSharding, rows: int, window: str
) -> Measure:
    """Program for one greedy token of each of `rows` slots."""
    fill = QUARTER if window == "quarter" else 1.0
    attend = partial(decode_attention_tpu, assumed_fill=fill)
    platform = replace(TPU, kernels=replace(TPU.kernels, decode_attention=attend))
    pool = jax.eval_shape(lambda: new_pool(config, rows, BF16, platform))
    active = jax.ShapeDtypeStruct((rows,), jnp.bool)
    compiled, params = compile_step(config, matrices, chip, greedy_step, pool, active, platform=platform)
    rings = rows * config.block_types.count("attention") * 2 * config.window * config.head_dim * BF16.itemsize
    floor = size(params) + size(pool.states) - int((1 - fill) * rings)
    return as_measure("decode", rows, window, floor, compiled)


def measure_prefill(config: ModelConfig, matrices: jnp.dtype, chip: SingleDeviceSharding, length: int) -> Measure:
    """Program for one chunk of a prompt, into one of 8 slots; scoring its tokens is another program."""
    pool = jax.eval_shape(lambda: new_pool(config, 8, BF16, TPU))
    inputs = prefill_input((), (), 1, length, 8)
    compiled, params = compile_step(config, matrices, chip, steps.prefill_step, pool, inputs)
    table = config.vocab_size * config.width * matrices.itemsize
    floor = size(params) - table + length * config.width * matrices.itemsize + config.state_bytes(BF16.itemsize)
    return as_measure("prefill", 1, "full", floor, compiled)


def greedy_step(graph: Any, params: Any, pool: steps.StatePool, active: jax.Array) -> Any:
    """`decode_step` without the branch for rows that do not sample greedily."""
    with patch.object(steps, "sample_or_greedy", lambda model, hidden, *_: steps.greedy_sample(model, hidden)):
        return steps.decode_step(graph, 1, params, pool, active, jnp.ones((), jnp.int32))


def compile_step(
    config: ModelConfig,
    matrices: jnp.dtype,
    chip: SingleDeviceSharding,
    step: Callable[..., Any],
    pool: Any,
    *inputs: Any,
    platform: Platform = TPU,
) -> tuple[Any, Any]:
    """Returns the compiled program and the parameters' shapes."""
    graph, params = abstract_model(config, BF16, platform, matrix_dtype=matrices)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), (params, pool, *inputs))
    lowered = jax.jit(partial(step, graph), donate_argnums=1).trace(*shapes).lower(lowering_platforms=("tpu",))
    return lowered.compile(compiler_options=COUNT_HBM_ONLY), params


def as_measure(program: str, rows: int, window: str, floor: int, compiled: Any) -> Measure:
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    in_place = memory.alias_size_in_bytes
    return Measure(
        program,
        rows,
        window,
        floor_bytes=floor,
        bytes_accessed=int(cost["bytes accessed"]),
        temp_bytes=memory.temp_size_in_bytes,
        hbm_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - in_place
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        optimal_seconds=cost["optimal_seconds"],
        custom_calls=compiled.as_text().count('custom_call_target="tpu_custom_call"'),
    )


def size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def as_table(measures: list[Measure], model: str, chip: str, quantize: str | None) -> Table:
    """Prints gigabytes, milliseconds, the ratio to the floor, and the official program if it was measured."""
    quantized = f", matrices in {quantize}" if quantize else ""
    table = Table(title=f"{model} on one {chip} chip, bfloat16{quantized}")
    names = ("program", "rows", "window", "floor", "accessed", "over floor", "official", "temp", "HBM", "fits")
    for name in (*names, "estimate ms", "tokens/s", "official", "kernels"):
        table.add_column(name, justify="left" if name in ("program", "window") else "right")
    for m in measures:
        floor, accessed, temp, hbm = (
            f"{x / 1e9:.3f}" for x in (m.floor_bytes, m.bytes_accessed, m.temp_bytes, m.hbm_bytes)
        )
        theirs = None if quantize else OFFICIAL.get((model, chip, m.program, m.rows))
        ratio, speed = (
            ("", "") if theirs is None else (f"{theirs[0] / m.floor_bytes:.2f}", f"{m.tokens / theirs[1]:,.0f}")
        )
        fits = "yes" if m.hbm_bytes < DEVICES[chip].memory_bytes else "no"
        over, estimate = f"{m.bytes_accessed / m.floor_bytes:.3f}", f"{m.optimal_seconds * 1e3:.1f}"
        ours = (floor, accessed, over, ratio, temp, hbm, fits, estimate, f"{m.tokens / m.optimal_seconds:,.0f}", speed)
        table.add_row(m.program, str(m.rows), m.window, *ours, str(m.custom_calls))
    return table


if __name__ == "__main__":
    main()
