"""Compiles served programs to machine code for an NVIDIA GPU, without one, and counts what they launch.

Requires JAX's CUDA plugin (`pip install '.[cuda13]'`), but no GPU.

    python tools/programs/gpu_programs.py --model 2b|9b --card h100|a100|l4 [--quantize int8] [--kv-dtype int8]
        [--slots N] [--programs decode-128 prefill-1x512 ...] [--busy 1 64 ...] > results.jsonl
    python tools/programs/gpu_programs.py --markdown results.jsonl... [--page benchmarks/gpu-programs.md]

The programs are those that `roost serve` compiles on the card: same options, donation, sampling branches and, without
`--slots`, the number of slots that a start estimates. There is no card to tune products on, so they call cuBLAS.

`launches` are the kernels and copies that a step of greedy rows starts, `launches_in_graphs` those of them that XLA
starts together as CUDA graphs, and `while_loops` the loops around launches. `copies_of_pool` and `full_sorts` count on
every path, penalties, masks and draws included: copies of an array of the state pool, and sorts along the vocabulary.
`kernels` has what Roost's own kernels take; its registers are null where nvJitLink is not installed.

`parts` are the estimated times of the launches by kind (`gpu_estimate`), and the estimate of a program is their sum.
Three times are bounds, of which none is an estimate: `memory_seconds` to move weights and states once at the card's
bandwidth, `tensor_seconds` for all products at its peak, and `launch_seconds` at 2 µs for every launch. The limit of
tokens per second is that of the first two, as `roost plan` has it.

`busy` are the slots with a request: all that a program computes, or with `--busy` as many of the smallest decode
program that has them. Attention reads nothing of the others; everything else counts for all rows.
"""

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import jax
import orjson

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from gpu_dump import (
    KernelResources,
    count,
    count_copies,
    count_graph_launches,
    count_launches,
    count_sorts,
    kernel_resources,
    parse_thunks,
)
from gpu_estimate import Part, Sizes, estimate, names_of_thunks
from results_page import table
from roost.engine.capacity.chips import CARDS, memory_limit, open_chips, tracing_for
from roost.engine.capacity.roofline import DEVICES, Device, compute_roofline, estimated_slots, memory_of_served
from roost.engine.checkpoint.source import open_model
from roost.engine.model.config import ModelConfig
from roost.engine.types.config import ONE_DEVICE, EngineConfig
from roost.engine.worker.compilation import compile_lowered, program_memory
from roost.engine.worker.lowering import idle_bytes, lower
from roost.engine.worker.served import PrefillShape, Program, Served, open_weights
from roost.kernels.recurrent_block.pallas_gpu import INNER_BYTES
from tpu_hlo import parse_module

PROGRAMS: Final = ("prefill-1x512", "prefill-8x64", "prefill-1x2048", "decode-128", "decode-512")

KERNELS: Final = ("recurrent_step", "rg_lru", "window_attention_decode", "window_attention_prefill")
"""Names of Roost's own kernels."""

LAUNCH_SECONDS: Final = 2e-6

INT8_PRODUCT: Final = re.compile(r'= \(s32\[.* custom-call\(.*"__cublas\$lt')

COLUMNS: Final = (
    "model", "card", "slots", "program", "busy", "launches", "in graphs", "loops", "copies of pool", "full sorts",
    "int8 products", "temporaries", "memory", "fits", "by memory", "by products", "by launches", "estimate", "tokens/s",
    "limit",
)  # fmt: skip

PART_COLUMNS: Final = (
    "model", "card", "program", "busy", "part", "launches", "by bytes", "by products", "by latency", "estimate",
)  # fmt: skip

KERNEL_COLUMNS: Final = (
    "model", "card", "program", "kernel", "launches", "threads", "registers", "spilled bytes", "shared memory",
    "blocks per multiprocessor", "cycles of a block",
)  # fmt: skip

SHORT_TYPES: Final = {"bfloat16": "bf16", "float32": "f32", "int32": "s32", "int8": "s8"}


@dataclass(frozen=True)
class Row:
    """One compiled program; see the module for the counts and times.

    Attributes:
      rows: Slots that the program computes, or prompts that it prefills.
      busy: Rows with a request.
      tokens: Tokens that one run generates or prefills.
      temp_bytes: Bytes of temporaries.
      memory_bytes: Memory that the program takes while it runs, with weights and all slots.
      fits: Whether JAX's share of the card's memory is as much.
      int8_products: Number of products of int8 matrices that call cuBLASLt, on any path.
      kernels: What Roost's own kernels take.
      parts: Estimated times of the launches by kind.
    """

    model: str
    card: str
    slots: int
    quantize: str | None
    kv_dtype: str
    program: str
    rows: int
    busy: int
    tokens: int
    launches: int
    launches_in_graphs: int
    while_loops: int
    copies_of_pool: int
    full_sorts: int
    int8_products: int
    temp_bytes: int
    memory_bytes: int
    fits: bool
    memory_seconds: float
    tensor_seconds: float
    launch_seconds: float
    kernels: tuple[KernelResources, ...]
    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        """Estimate of one run."""
        return sum(part.seconds for part in self.parts)

    @property
    def limit(self) -> float:
        """Upper bound of tokens per second."""
        return self.tokens / max(self.memory_seconds, self.tensor_seconds)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="2b", help="2b, 9b, or what `random:` takes")
    arguments.add_argument("--card", choices=sorted(CARDS.keys() & DEVICES.keys()), default="h100")
    arguments.add_argument("--quantize", choices=["int8"], help="matrices in int8")
    arguments.add_argument("--kv-dtype", choices=["int8"], help="attention windows in int8")
    arguments.add_argument("--slots", type=int, help="slots of the pool; without it as many as a start estimates")
    arguments.add_argument("--prefill-chunk", type=int, default=2048)
    arguments.add_argument("--programs", nargs="*", default=PROGRAMS, help="such as decode-128 or prefill-1x512")
    arguments.add_argument(
        "--busy", nargs="+", type=int, default=[], help="busy slots, each number in the smallest program that has them"
    )
    arguments.add_argument("--markdown", nargs="+", type=Path, help="print tables of files with such lines")
    arguments.add_argument("--page", type=Path, help="put the tables of --markdown in the place of a page's tables")
    options = arguments.parse_args()
    if options.markdown:
        rows = [parse_row(line) for path in options.markdown for line in path.open("rb")]
        if options.page:
            options.page.write_text(with_tables(options.page.read_text(), rows))
        else:
            print(as_markdown(rows))
        return
    for row in measure(options):
        print(orjson.dumps(asdict(row)).decode(), flush=True)


def parse_row(line: bytes) -> Row:
    """Returns a row that was printed."""
    fields = orjson.loads(line)
    kernels = tuple(KernelResources(**kernel) for kernel in fields["kernels"])
    return Row(**fields | {"kernels": kernels, "parts": tuple(Part(**part) for part in fields["parts"])})


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Compiles the wanted programs, one after the other."""
    devices = open_chips(options.card, ONE_DEVICE)
    limit = memory_limit(options.card, devices)
    source = open_model(f"random:{options.model}").with_kv_dtype(options.kv_dtype)
    settings = EngineConfig(
        dtype="bfloat16",
        quantize=options.quantize,
        kv_dtype=options.kv_dtype,
        prefill_chunk=options.prefill_chunk,
    )
    with ExitStack() as stack:
        stack.enter_context(tracing_for(options.card))
        weights = stack.enter_context(open_weights(source, settings, devices))
        memory = memory_of_served(weights, limit)
        slots = options.slots or estimated_slots(memory, devices.shards)
        served = weights.served.with_slots(slots)
        for name, busy in wanted_rows(served, options).items():
            yield from measured(served, name, busy, options, limit)


def wanted_rows(served: Served, options: argparse.Namespace) -> dict[str, list[int]]:
    """Returns the numbers of busy rows by program."""
    wanted = {name: [find_program(served, name)[1]] for name in options.programs}
    for busy in options.busy:
        rows = next(rows for rows in served.programs.decode if rows >= busy)
        wanted.setdefault(f"decode-{rows}", []).append(busy)
    return wanted


def measured(
    served: Served, name: str, wanted: Sequence[int], options: argparse.Namespace, limit_bytes: int
) -> Iterator[Row]:
    """Compiles one program and yields its row for each number of busy rows."""
    program, rows, tokens = find_program(served, name)
    with tempfile.TemporaryDirectory() as folder:
        dumps: dict[str, Any] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_emitter_re": "^ptx$"}
        settings = dict(served.devices.platform.compile_options) | dumps
        lowered = lower(program, served)
        compiled = compile_lowered(lowered, settings)
        (dump,) = Path(folder).glob("*thunk_sequence_after_thunk_passes.txt")
        (metadata,) = Path(folder).glob("*thunk_metadata.txt")
        thunks, names = parse_thunks(dump.read_text()), names_of_thunks(metadata.read_text())
        kernels = kernel_resources(loop_passes(served), thunks, Path(folder), CARDS[options.card])
    text, memory = compiled.as_text(), program_memory(compiled)
    memory_bytes = memory.hbm_bytes + idle_bytes(lowered, served)
    module, launches = parse_module(text), count_launches(thunks)
    card, device = CARDS[options.card], DEVICES[options.card]
    assert device.peak is not None
    for busy in wanted:
        done = busy if rows == tokens else tokens
        times = roofline_seconds(served.config, device, options.quantize, busy, done)
        computed = (rows, busy) if rows == tokens else (served.rows, served.rows)
        sizes = Sizes(*computed, served.rows, served.config.window)
        yield Row(
            model=options.model,
            card=options.card,
            slots=served.slots,
            quantize=options.quantize,
            kv_dtype=options.kv_dtype or "bfloat16",
            program=name,
            rows=rows,
            busy=busy,
            tokens=done,
            launches=launches,
            launches_in_graphs=count_graph_launches(thunks),
            while_loops=count(thunks, "kWhile"),
            copies_of_pool=count_copies(text, pool_types(served)),
            full_sorts=count_sorts(text, served.config.vocab_size),
            int8_products=len(INT8_PRODUCT.findall(text)),
            temp_bytes=memory.temp_bytes,
            memory_bytes=memory_bytes,
            fits=memory_bytes <= limit_bytes,
            memory_seconds=times[0],
            tensor_seconds=times[1],
            launch_seconds=launches * LAUNCH_SECONDS,
            kernels=kernels,
            parts=estimate(module, thunks, names, kernels, card, device.peak, sizes),
        )


def loop_passes(served: Served) -> dict[str, int | None]:
    """Returns the passes of each loop of Roost's kernels, by name; None where they depend on the data."""
    inputs = served.config.lru_width // served.config.num_heads  # of a gate block
    return dict.fromkeys(KERNELS) | {"recurrent_step": inputs * served.dtype.itemsize // INNER_BYTES}


def find_program(served: Served, name: str) -> tuple[Program[Any], int, int]:
    """Returns a program by its name here, its rows, and the tokens of one run."""
    kind, _, shape = name.partition("-")
    if kind == "decode":
        return served.programs.decode[int(shape)], int(shape), int(shape)
    rows, length = map(int, shape.split("x"))
    (program,) = served.programs.prefill[PrefillShape(rows, length)]
    return program, rows, rows * length


def pool_types(served: Served) -> set[str]:
    """Returns the types of the state pool's arrays in XLA's notation."""
    leaves = jax.tree.leaves(served.pool.states)
    return {f"{SHORT_TYPES[x.dtype.name]}[{','.join(map(str, x.shape))}]" for x in leaves}


def roofline_seconds(
    config: ModelConfig, device: Device, quantize: str | None, rows: int, tokens: int
) -> tuple[float, float]:
    """Returns the times of one run by memory alone and by products alone."""
    assert device.peak is not None
    unlimited = (
        replace(device.peak, flops_per_second=math.inf, int8_per_second=math.inf),
        replace(device.peak, bytes_per_second=math.inf),
    )
    lines = [compute_roofline(config, replace(device, peak=peak), 2, quantize=quantize) for peak in unlimited]
    if tokens == rows:
        by_memory, by_products = (rows / line.decode_tokens_per_second(rows) for line in lines)
        return by_memory, by_products
    by_memory = lines[0].memory_bytes(rows) / device.peak.bytes_per_second
    return by_memory, tokens / lines[1].prefill_tokens_per_second()


# --- tables


def as_markdown(rows: list[Row]) -> str:
    """Returns tables of the programs, of their estimates' parts, and of their kernels."""
    return "\n".join(tables(rows))


def with_tables(page: str, rows: list[Row]) -> str:
    """Returns a page with the tables of these rows in the place of those with the same columns."""
    for lines in tables(rows):
        header = lines.partition("\n")[0]
        page, count = re.subn(rf"^{re.escape(header)}\n(?:\|.*\n)*", lambda _, new=lines: new, page, flags=re.MULTILINE)
        if not count:
            raise SystemExit(f"the page has no table with the columns {header}")
    return page


def tables(rows: list[Row]) -> tuple[str, ...]:
    """Returns the tables of programs, of parts and of kernels, with a line break after each line."""
    parts = [part_cells(row, part) for row in rows for part in row.parts]
    kernels = list(dict.fromkeys(kernel_cells(row, kernel) for row in rows for kernel in row.kernels))
    own = ((COLUMNS, list(map(cells, rows))), (PART_COLUMNS, parts), (KERNEL_COLUMNS, kernels))
    return tuple(table(columns, lines) + "\n" for columns, lines in own)


def model_of(row: Row) -> str:
    return row.model + (", int8" if row.quantize else "") + (", windows in int8" if row.kv_dtype == "int8" else "")


def part_cells(row: Row, part: Part) -> tuple[str, ...]:
    times = (part.memory_seconds, part.tensor_seconds, part.latency_seconds, part.seconds)
    shown = (f"{1e3 * seconds:.2f} ms" for seconds in times)
    return model_of(row), row.card, row.program, str(row.busy), part.name, f"{part.launches:,}", *shown


def kernel_cells(row: Row, kernel: KernelResources) -> tuple[str, ...]:
    numbers = (
        kernel.registers,
        kernel.spilled_bytes,
        kernel.shared_bytes,
        kernel.blocks_per_multiprocessor,
        kernel.cycles,
    )
    known = ("unknown" if number is None else f"{number:,}" for number in numbers)
    return model_of(row), row.card, row.program, kernel.name, str(kernel.launches), str(kernel.threads), *known


def cells(row: Row) -> tuple[str, ...]:
    counts = (row.busy, row.launches, row.launches_in_graphs, row.while_loops, row.copies_of_pool, row.full_sorts)
    sizes = (f"{size / 1e9:.2f} GB" for size in (row.temp_bytes, row.memory_bytes))
    times = (row.memory_seconds, row.tensor_seconds, row.launch_seconds, row.seconds)
    return (
        model_of(row),
        row.card,
        f"{row.slots:,}",
        row.program,
        *map(str, (*counts, row.int8_products)),
        *sizes,
        "yes" if row.fits else "no",
        *(f"{1e3 * seconds:.2f} ms" for seconds in times),
        f"{row.tokens / row.seconds:,.0f}",
        f"{row.limit:,.0f}",
    )


if __name__ == "__main__":
    main()
