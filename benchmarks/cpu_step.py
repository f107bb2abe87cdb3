"""Shows where the time of a decode step or of a prefill chunk on a CPU goes, beside what the processor needs at least.

    python benchmarks/cpu_step.py [--model MODEL] [--quantize int8|int4] [--rows 32] [--filled 600] [--steps 300]
    python benchmarks/cpu_step.py [--model MODEL] [--quantize int8|int4] --prefill 512 [--steps 50]
    python benchmarks/cpu_step.py [--model MODEL] [--quantize int8|int4] --busy 1 3 6 12 20 32 [--slots 32] [--steps 50]
    python benchmarks/cpu_step.py [--model MODEL] [--quantize int8|int4] --prompts 8 65 200 512 2000 [--steps 20]

A step is the engine's own program with greedy rows, each with `filled` tokens in its window; a chunk is the engine's
programs for the beginning of one prompt, a slice of the layers each. It is timed, and then traced: the table has the
time of each native kernel and of XLA's operations, as a low percentile over the traced runs, so that a moment when
something else runs does not count. The floor is the larger of two times: that of reading the matrices and states, at
the rate at which a product of one row reads a matrix, and that of the products, at the rate of a matrix in the cache
with many rows. Both rates are measured in the same process, with int8 matrices for int4.

`--busy` has the time of the step that the engine runs for some busy slots, greedy and sampled (temperature 0.8, top-p
0.9); `--prompts` the time from a prompt to its first token, from an idle engine. Sizes take turns; each has its least
time and the tenth percentile.
"""

import argparse
import gzip
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orjson
from roost.engine import ModelRunner, Request, SamplingParams
from roost.engine.builder import load_runner
from roost.engine.checkpoint.source import open_model
from roost.engine.engine_core import EngineCore
from roost.engine.model.layer_kinds import AttentionState
from roost.engine.sampling.sampler import Sampled
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import EngineConfig
from roost.engine.worker.executor import Executor
from roost.engine.worker.served import PrefillShape, Program
from roost.engine.worker.steps import PrefillInput, PrefillResult
from roost.kernels import native
from roost.kernels.matrices import PackedInt4Matrix, PackedMatrix
from roost.kernels.matrices.packed import packed_shape

sys.path[:0] = [str(Path(__file__).resolve().parent / "peers")]

from models import SMALL  # noqa: E402

TRACED_STEPS: Final = 60
LOW: Final = 0.1
"""Share of the traced steps that may be faster than the time shown."""

CALL: Final = re.compile(r'custom_call_target="(?:roost_)?([^"]+)"')
DEFINITION: Final = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (?:\([^)]*\)|\S+)\s+([\w\-]+)\((.*)")


type Programs = Mapping[str, Callable[[], jax.Array]]
"""Programs of a step or a chunk by label, as functions that run them and return a result that need not be ready."""


type Sizes = Iterable[tuple[str, Callable[[], None], Callable[[], None]]]
"""Names of sizes, each with a function that prepares a call, and the call that is timed."""


class Rates(NamedTuple):
    """What the processor does at best.

    Attributes:
      read: Bytes of a matrix read per second.
      products: Multiplications and additions per second.
    """

    read: float
    products: float


class Need(NamedTuple):
    """What a step has to do.

    Attributes:
      bytes: Bytes of matrices and states that are read.
      products: Multiplications and additions with matrices.
    """

    bytes: float
    products: float


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        runner = load_runner(open_model(options.model or small(Path(folder))), config(options))
        executor: Executor = runner.executor
        if options.busy or options.prompts:
            calls = busy_steps(executor, options) if options.busy else first_tokens(runner, options.prompts)
            print(sizes_page(in_turns(calls, options.steps)))
            return
        fill(executor, options.filled)
        programs = chunk(executor, options.prefill) if options.prefill else decode_step(executor, options.rows)
        times = sorted(timed(partial(run, programs.values())) for _ in range(options.steps))
        operations_of = total_of(
            traced(partial(run, [program]), Path(folder) / label, executor.compiled[label].as_text())
            for label, program in programs.items()
        )
    if options.prefill:
        need = need_of_chunk(executor, options.prefill)
    else:
        need = need_of_step(executor, options.rows, options.filled)
    print(page(times, operations_of, need, measured_rates(options.quantize)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="what `roost serve` takes; random weights of `small` by default")
    parser.add_argument("--quantize", choices=["int8", "int4"], help="format of the matrices (bfloat16)")
    parser.add_argument("--rows", type=int, default=32, metavar="N", help="rows of the step, 1, 4, 8 or 32 (32)")
    parser.add_argument("--filled", type=int, default=600, metavar="N", help="tokens before the step in each row (600)")
    parser.add_argument("--prefill", type=int, metavar="N", help="time a chunk of 128 or 512 tokens instead")
    parser.add_argument("--busy", type=int, nargs="+", metavar="N", help="time steps of these numbers of busy slots")
    parser.add_argument(
        "--prompts", type=int, nargs="+", metavar="N", help="time first tokens of prompts of these lengths"
    )
    parser.add_argument("--slots", type=int, default=32, metavar="N", help="number of slots (32)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="steps or chunks that are timed (300)")
    return parser.parse_args()


def small(folder: Path) -> str:
    path = folder / "config.json"
    path.write_bytes(orjson.dumps(SMALL.hf_config("bfloat16")))
    return f"random:{path}"


def config(options: argparse.Namespace) -> EngineConfig:
    return EngineConfig(slots=options.slots, quantize=options.quantize, dtype="bfloat16", state_cache_gib=0.0)


def fill(executor: Executor, filled: int, temperature: float = 0.0) -> None:
    """Makes every slot a request with `filled` tokens before it, a last token of its own and no end."""
    pool = executor.arrays.get("pool")
    slots = pool.slots
    sampling = replace(
        slots.sampling,
        last_position=jnp.full_like(slots.sampling.last_position, 2**30),
        temperature=jnp.full_like(slots.sampling.temperature, temperature),
        top_p=jnp.full_like(slots.sampling.top_p, 0.9),
    )
    slots = slots._replace(
        tokens=jnp.arange(len(slots.tokens), dtype=slots.tokens.dtype),  # equal rows would be computed once
        positions=jnp.full_like(slots.positions, filled),
        goes_on=jnp.ones_like(slots.goes_on),
        sampling=sampling,
    )
    executor.arrays.put("pool", pool._replace(slots=slots))


def decode_step(executor: Executor, rows: int) -> Programs:
    program, active = executor.programs.decode[rows], np.ones(rows, np.bool_)
    return {program.label: lambda: executor.run(program, active, np.int32(1)).tokens}


def busy_steps(executor: Executor, options: argparse.Namespace) -> Sizes:
    """Yields a step for each number of busy slots, and the name of its row."""
    for temperature, name in ((0.0, "greedy"), (0.8, "sampled")):
        for busy in options.busy:
            rows = next(rows for rows in executor.served.decode_rows if rows >= busy)
            program, active = executor.programs.decode[rows], np.arange(rows) < busy

            def step(program: Program[Sampled] = program, active: Any = active) -> None:
                executor.run(program, active, np.int32(1)).tokens.block_until_ready()

            yield f"{busy} busy of {options.slots}, {name}", partial(fill, executor, options.filled, temperature), step


def first_tokens(runner: ModelRunner, lengths: Iterable[int]) -> Sizes:
    """Yields a request of one token for each length of a prompt, and the name of its row."""
    core, ids = EngineCore(Scheduler(runner.served.slots, 100, runner.limits), runner), count()

    def serve(length: int) -> None:
        request = Request(str(next(ids)), tuple(range(3, 3 + length)), SamplingParams(max_tokens=1, temperature=0.0))
        core.add(request)
        while not core.is_idle:
            core.step()

    for length in lengths:
        yield f"prompt of {length:,}", lambda: None, partial(serve, length)


def in_turns(sizes: Sizes, num_calls: int) -> Mapping[str, list[float]]:
    """Returns the seconds of `num_calls` calls of each size, in rising order."""
    each = list(sizes)
    times: dict[str, list[float]] = {name: [] for name, *_ in each}
    for _ in range(num_calls):
        for name, prepare, call in each:
            prepare()
            times[name].append(timed(call))
    return {name: sorted(some) for name, some in times.items()}


def sizes_page(times: Mapping[str, list[float]]) -> str:
    lines = ["| size | least, ms | tenth percentile, ms |", "| --- | --- | --- |"]
    lines += [f"| {name} | {1e3 * each[0]:.2f} | {1e3 * each[len(each) // 10]:.2f} |" for name, each in times.items()]
    return "\n".join(lines)


def chunk(executor: Executor, tokens: int) -> Programs:
    """Returns the programs of a chunk in a slot of its own, one for each slice of the layers."""
    shape = PrefillShape(1, tokens)
    start, length = np.zeros(1, np.int32), np.full(1, tokens, np.int32)
    inputs = PrefillInput(np.arange(tokens, dtype=np.int32)[None], start, length, slots=start)

    def run_slice(program: Program[PrefillResult]) -> jax.Array:
        return executor.run(program, inputs).last

    return {program.label: partial(run_slice, program) for program in executor.programs.prefill[shape]}


def run(programs: Iterable[Callable[[], jax.Array]]) -> None:
    """Runs programs one after the other, and waits for the last."""
    results = [program() for program in programs]
    results[-1].block_until_ready()


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def traced(step: Callable[[], None], folder: Path, program: str) -> Mapping[str, tuple[float, float]]:
    """Returns seconds and calls per step of each operation."""
    with jax.profiler.trace(str(folder)):
        for _ in range(TRACED_STEPS):
            step()
    (trace,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    names = dict(operations(program))
    durations = defaultdict(list)
    for event in orjson.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]:
        if event.get("ph") == "X" and event["name"] in names:
            durations[event["name"]].append(event["dur"] * 1e-6)
    calls: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for name, each in durations.items():
        count, (seconds, before) = len(each) / TRACED_STEPS, calls[names[name]]
        calls[names[name]] = (seconds + count * sorted(each)[int(LOW * len(each))], before + count)
    return calls


def total_of(traces: Iterable[Mapping[str, tuple[float, float]]]) -> Mapping[str, tuple[float, float]]:
    """Returns seconds and calls of each operation in all programs."""
    total: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for trace in traces:
        for name, (seconds, calls) in trace.items():
            total[name] = (total[name][0] + seconds, total[name][1] + calls)
    return total


def operations(program: str) -> Iterator[tuple[str, str]]:
    """Yields each instruction of a compiled program with the row of the table that it counts in."""
    for match in filter(None, map(DEFINITION.match, program.splitlines())):
        target = CALL.search(match[3])
        if match[2] not in ("while", "conditional", "call"):  # their instructions count
            yield match[1], target[1].replace("_", " ") if target else f"XLA: {match[2]}"


def need_of_chunk(executor: Executor, tokens: int) -> Need:
    """Returns what a chunk needs at least: all weights but those of the embedding, whose rows are few."""
    elements, read = size_of(executor.arrays.get("params"))
    others, rest = size_of(executor.arrays.get("params")["embedding"])
    return Need(read - rest, 2.0 * tokens * (elements - others))


def size_of(params: Any) -> tuple[int, int]:
    """Returns the number of elements of matrices, and the bytes of all parameters."""
    weights = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, PackedMatrix | PackedInt4Matrix))
    elements = sum(x.values.size for x in weights if isinstance(x, PackedMatrix))
    elements += sum(2 * x.values.size for x in weights if isinstance(x, PackedInt4Matrix))
    return elements, sum(x.nbytes for x in jax.tree.leaves(params))


def need_of_step(executor: Executor, rows: int, filled: int) -> Need:
    """Returns what a step of the first slots needs at least."""
    elements, read = size_of(executor.arrays.get("params"))
    for layer in executor.arrays.get("pool").states.state:
        if isinstance(layer, AttentionState):
            keys, _ = layer.rings
            read += rows * min(filled, keys.shape[1]) * 2 * keys.shape[2] * keys.dtype.itemsize
        else:
            read += sum(x.nbytes for x in layer) * rows // executor.served.rows
    return Need(read, 2.0 * rows * elements)


def measured_rates(quantize: str | None) -> Rates:
    def fastest(rows: int, outputs: int, inputs: int) -> float:
        packed = packed_shape((outputs, inputs), jnp.dtype("int8" if quantize else "bfloat16"))
        values = jnp.zeros(packed.shape, packed.dtype)
        x, f32 = jax.random.normal(jax.random.key(0), (rows, inputs), jnp.bfloat16), jnp.dtype("float32")
        if quantize:
            product = jax.jit(lambda x, w, s: native.int8_product(x, w, s, None, f32))
            inputs_of = (x, values, jnp.ones(outputs, jnp.float32))
        else:
            product, inputs_of = jax.jit(lambda x, w: native.bf16_product(x, w, None, f32)), (x, values)
        return min(timed(lambda: product(*inputs_of).block_until_ready()) for _ in range(50))

    width = 1 if quantize else 2
    read = 65536 * 2048 * width / fastest(1, 65536, 2048)
    return Rates(read, 2.0 * 256 * 768 * 1536 / fastest(256, 1536, 768))


def page(times: list[float], calls: Mapping[str, tuple[float, float]], need: Need, rates: Rates) -> str:
    reading, products = need.bytes / rates.read, need.products / rates.products
    step, floor = times[len(times) // 2], max(reading, products)
    whole = sum(seconds for seconds, _ in calls.values())
    lines = [
        "| part | ms | share | calls |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {1e3 * seconds:.2f} | {seconds / whole:.0%} | {count:.0f} |"
            for name, (seconds, count) in sorted(calls.items(), key=lambda item: -item[1][0])
            if seconds > 0.002 * whole
        ),
        "",
        f"In all: {1e3 * times[0]:.2f} ms at least, {1e3 * step:.2f} ms in the median. Floor: {1e3 * floor:.2f} ms, of "
        f"{need.bytes / 1e6:.0f} MB at {rates.read / 1e9:.1f} GB/s ({1e3 * reading:.2f} ms) and "
        f"{need.products / 1e9:.1f} GOP at {rates.products / 1e12:.2f} TOP/s ({1e3 * products:.2f} ms). "
        f"Median ÷ floor: {step / floor:.2f}; least ÷ floor: {times[0] / floor:.2f}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
