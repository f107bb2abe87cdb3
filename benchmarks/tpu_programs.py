"""What the real TPU compiler makes of the engine's programs: bytes, temporaries, HBM, time. Needs libtpu, but no TPU.

    python benchmarks/tpu_programs.py --model 2b --chip v5e [--json]

Every program is compiled for one chip as the runner compiles it, in bfloat16, the state pool donated; decode chooses
greedily, since of a branch that is rarely taken the compiler counts all bytes. `floor_bytes` is what must move: every
weight once (in prefill, of the embedding only the rows looked up) and, in decode, the filled part of every slot's
state once. A custom call is counted by its `CostEstimate`. One option keeps moves between on-chip memories out of the
count.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

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
from roost.engine import runner
from roost.engine.model.config import PRESETS, ModelConfig
from roost.engine.model.griffin import abstract_model
from roost.engine.model.source import open_model
from roost.kernels import window_attention

TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
COUNT_HBM_ONLY = {"xla_vf_vmem_memory_space_assignment": "false"}
BF16 = jnp.dtype("bfloat16")
QUARTER = 0.25


@dataclass(frozen=True)
class Measure:
    """One program as the compiler sees it; bytes, and seconds by its own estimate."""

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
    def tokens_per_second(self) -> float:
        return (self.rows if self.program == "decode" else 2048) / self.optimal_seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="2b", help="2b, 9b, or what `random:` takes")
    arguments.add_argument("--chip", choices=TOPOLOGIES, default="v5e")
    arguments.add_argument("--rows", type=int, nargs="*", default=[8, 128, 512], help="slots of the decode programs")
    arguments.add_argument("--json", action="store_true", help="one line per program")
    options = arguments.parse_args()
    config = PRESETS.get(options.model) or open_model(f"random:{options.model}").config
    measures = []
    for measure in measure_all(config, options.chip, options.rows):
        measures.append(measure)
        if options.json:
            print(orjson.dumps(asdict(measure)).decode(), flush=True)
        else:
            print(f"{measure.program} x {measure.rows}, {measure.window} windows: compiled", file=sys.stderr)
    if not options.json:
        Console(width=140).print(as_table(measures, f"{options.model} on one {options.chip} chip, bfloat16"))


def measure_all(config: ModelConfig, chip_name: str, rows: list[int]) -> Iterator[Measure]:
    """Compiles every program, the quickest first."""
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=TOPOLOGIES[chip_name], chips_per_host_bounds=(2, 2, 1)
    )
    chip = SingleDeviceSharding(topology.devices[0])
    for count in rows:
        yield measure_decode(config, chip, count, "full")
    if rows:
        yield measure_decode(config, chip, max(rows), "quarter")
    yield measure_prefill(config, chip, 2048)


def measure_decode(config: ModelConfig, chip: SingleDeviceSharding, rows: int, window: str) -> Measure:
    """One greedy token for each of `rows` slots."""
    fill = QUARTER if window == "quarter" else 1.0
    attend = window_attention.decode_attention_tpu
    window_attention.decode_attention_tpu = partial(attend, assumed_fill=fill)  # type: ignore[assignment]
    try:
        pool = jax.eval_shape(lambda: runner._new_pool(config, rows, BF16))
        active = jax.ShapeDtypeStruct((rows,), jnp.bool)
        compiled, params = compile_step(config, chip, greedy_step, pool, active)
    finally:
        window_attention.decode_attention_tpu = attend
    rings = rows * config.block_types.count("attention") * 2 * config.window * config.head_dim * BF16.itemsize
    floor = size(params) + size(pool.layers) - int((1 - fill) * rings)
    return as_measure("decode", rows, window, floor, compiled)


def measure_prefill(config: ModelConfig, chip: SingleDeviceSharding, length: int) -> Measure:
    """One chunk of a prompt, into one of 8 slots; what its tokens are scored by is another program."""
    pool = jax.eval_shape(lambda: runner._new_pool(config, 8, BF16))
    inputs = runner._prefill_input((), 1, length, 8)
    compiled, params = compile_step(config, chip, runner.prefill_step, pool, inputs)
    table = config.vocab_size * config.width * BF16.itemsize
    floor = size(params) - table + length * config.width * BF16.itemsize + config.state_bytes(BF16.itemsize)
    return as_measure("prefill", 1, "full", floor, compiled)


def greedy_step(graph: Any, params: Any, pool: runner.StatePool, active: jax.Array) -> Any:
    """`decode_step` with the branch left out that is taken when a row asks for more than the likeliest token."""
    model, hidden, layers = runner.decode_hidden(graph, params, pool, active)
    sampled = runner.greedy_sample(model, hidden)
    tokens = jnp.where(active, sampled.tokens, pool.tokens)
    return runner.StatePool(layers, tokens, pool.positions + active, pool.sampling), sampled


def compile_step(
    config: ModelConfig, chip: SingleDeviceSharding, step: Callable[..., Any], pool: Any, *inputs: Any
) -> tuple[Any, Any]:
    """The compiled program and the parameters' shapes."""
    graph, params = abstract_model(config, BF16, backend="tpu")
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


def as_table(measures: list[Measure], title: str) -> Table:
    """For people: gigabytes, milliseconds, and the ratio to the floor."""
    table = Table(title=title)
    names = [f.name.removesuffix("_bytes").replace("_", " ") for f in fields(Measure)]
    for name in (*names[:4], "accessed", "over floor", "temp", "HBM", "estimate ms", "tokens/s", "kernels"):
        table.add_column(name, justify="left" if name in ("program", "window") else "right")
    for m in measures:
        gigabytes = [f"{x / 1e9:.3f}" for x in (m.floor_bytes, m.bytes_accessed, m.temp_bytes, m.hbm_bytes)]
        ratio = f"{m.bytes_accessed / m.floor_bytes:.3f}"
        speed = (f"{m.optimal_seconds * 1e3:.1f}", f"{m.tokens_per_second:,.0f}", str(m.custom_calls))
        table.add_row(m.program, str(m.rows), m.window, *gigabytes[:2], ratio, *gigabytes[2:], *speed)
    return table


if __name__ == "__main__":
    main()
