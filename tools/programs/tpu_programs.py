"""Compiles served programs with the real TPU compiler and estimates their time in two independent ways.

Requires libtpu, but no TPU.

    python tools/programs/tpu_programs.py --model 2b --chip v5e [--quantize int8] [--kv-dtype int8] [--slots N]
        [--rows 8 128] [--busy 129 256] > results.jsonl
    python tools/programs/tpu_programs.py --markdown results.jsonl...

The programs are those that `roost serve` compiles on the chip: same options, donation, sampling branches and, with the
`--slots` that `roost plan --verify` reports, number of slots. Every program of decode and prefill is
compiled once.

`greedy` and `sampled` (temperature and top-p 0.9 in every row) are the same decode program. Its text is costed
instruction by instruction (`tpu_hlo`), and of the conditional around the sampler only the branch that runs. The
conditionals inside of it, for penalties, masks and log-probabilities, take the cheaper branch. So `bytes_accessed` are
the bytes of main memory that one run moves. `floor_bytes` is what must move: every weight once (in prefill only the
embedding's rows that are looked up) and, in decode, the filled part of the computed slots' state once.

`optimal_seconds` adds up one instruction after the other, by the compiler's rule: products at the chip's peak (int8 at
int8's), or bytes at the bandwidth that the compiler counts on. A Pallas kernel counts by its `CostEstimate`. Copies
between memories that run beside other work are added too.

`scheduled_seconds` adds up the bundles of every function's final schedule (`tpu_schedule`), at one cycle each, or the
time above where that is longer. Calls of a kernel that share code share its schedule (`tpu_calls`). Copies that run
beside other work count only if all bytes together take longer. It is a lower bound: waits that no schedule shows are
not in it.

The attention kernel skips the rings of idle rows, so that share of its bytes and bundles is left out. Of a busy row's
ring it reads tiles of 128 tokens up to the new token's: those bytes count, and the bundles that run at that position.
`busy` are the rows with a request; `--busy` adds rows of the smallest program for that
many. The "quarter" row is the program of all slots with rings filled by a quarter. Everything else counts for all rows
of a program.

The "mixed" row is the device time of one request of 512 prompt tokens and 128 generated ones while all slots are busy:
its prefill, the program of its first token, and its share of 128 decode steps at position 576.
"""

import argparse
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import orjson
from roost.engine.capacity.chips import AheadOfTime, compile_for_chips, open_chips, served_on
from roost.engine.capacity.roofline import DEVICES, compute_roofline
from roost.engine.checkpoint.source import open_model
from roost.engine.model.config import ModelConfig
from roost.engine.model.state import state_bytes, window_bytes
from roost.engine.types.config import MAX_PREFILL_ROWS, ONE_DEVICE, EngineConfig
from roost.engine.worker.compilation import OutOfMemoryError
from roost.engine.worker.served import PrefillShape, Program, Served
from roost.kernels.sampling.pallas_tpu import _Need
from roost.kernels.window_attention.pallas_tpu_decode import READ_TILE
from tpu_calls import is_call, names_of_schedules
from tpu_hlo import Cost, Instruction, Module, Rates, cost_of, executed, parse_module
from tpu_schedule import TABLE_WIDTH, Dump

CLOCKS: Final[Mapping[str, float]] = {"v5e": 1.5e9, "v6e": 1.75e9}
"""Cycles per second: peak operations by the operations of all matrix units per cycle."""

BANDWIDTHS: Final[Mapping[str, float]] = {"v5e": 737.7e9, "v6e": 1476e9}
"""Bytes of main memory per second, 0.9 of the peak. The compiler counts on that on a v5e, and on the peak on a v6e."""

MIXED_PROMPT, MIXED_REPLY = 512, 128
"""Tokens of the request of the "mixed" row."""

DUMP_OPTIONS: Final = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles|hlo-details"
)

SAMPLED_NEEDS: Final = tuple(int(need in (_Need.ANYTHING, _Need.DRAW, _Need.TOP_P)) for need in _Need)
"""Row of the sampler's table of needs for 8 rows with a temperature and top-p."""

ATTENTION: Final = "window_attention_decode"

KINDS: Final = ["decode", "prefill", "mixed"]

COLUMNS: Final = (
    "program", "rows", "busy", "sampling", "windows", "floor", "accessed", "over floor", "temporaries", "HBM", "fits",
    "estimate", "scheduled", "tokens/s", "limit", "kernels",
)  # fmt: skip

type Fields = Mapping[str, Any]
"""Fields of a `Row`, as `--json` prints them."""


@dataclass(frozen=True)
class Row:
    """One program according to the compiler.

    Attributes:
      model: Name of the model.
      chip: Name of the chip.
      slots: Number of slots of the pool.
      program: "decode", "prefill", "score", "first token" or "mixed".
      rows: Slots that the program computes, or prompts that it prefills.
      busy: Rows with a request.
      tokens: Tokens that one run generates or prefills; of "mixed", those of the request.
      window: Filled part of the attention windows: "full", "quarter" or a position.
      sampling: "greedy" or "sampled".
      kv_dtype: Dtype of keys and values.
      quantize: Dtype of quantised matrices, or None.
      floor_bytes, bytes_accessed, optimal_seconds, scheduled_seconds: See the module; 0 if the program does not fit.
      temp_bytes: Bytes of temporaries.
      hbm_bytes: Main memory that the program takes while it runs.
      custom_calls: Number of calls of Pallas kernels.
      fits: Whether the compiler accepts the program.
      without_end: Number of executed instructions whose schedules have no known end, so that their loops count once.
      without_bundles: Number of executed calls of Pallas kernels that count by their `CostEstimate` alone, because no
        call of the same kernel has a schedule.
    """

    model: str
    chip: str
    slots: int
    program: str
    rows: int
    busy: int
    tokens: int
    window: str
    sampling: str
    kv_dtype: str
    quantize: str | None
    floor_bytes: int = 0
    bytes_accessed: int = 0
    temp_bytes: int = 0
    hbm_bytes: int = 0
    optimal_seconds: float = 0.0
    scheduled_seconds: float = 0.0
    custom_calls: int = 0
    fits: bool = False
    without_end: int = 0
    without_bundles: int = 0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="2b", help="2b, 9b, or what `random:` takes")
    arguments.add_argument("--chip", choices=CLOCKS, default="v5e")
    arguments.add_argument("--quantize", choices=["int8"], help="matrices in int8")
    arguments.add_argument("--kv-dtype", choices=["int8"], help="attention windows in int8")
    arguments.add_argument("--slots", type=int, help="slots of the pool; without it as many as roost plan names")
    arguments.add_argument(
        "--rows", nargs="*", help='decode programs to compile, such as "8 all"; without it every one'
    )
    arguments.add_argument(
        "--busy", nargs="+", type=int, default=[], help="busy slots, each number in the smallest program that has them"
    )
    arguments.add_argument("--programs", nargs="+", choices=KINDS, default=KINDS)
    arguments.add_argument("--markdown", nargs="+", type=Path, help="print tables of files with such lines")
    options = arguments.parse_args()
    if options.markdown:
        print(as_markdown([orjson.loads(line) for path in options.markdown for line in path.open("rb")]))
        return
    for row in measure(options):
        print(orjson.dumps(asdict(row)).decode(), flush=True)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Compiles the decode programs in rising order of rows, then those of prefill."""
    with dumped_schedules() as folder:
        devices = open_chips(options.chip, ONE_DEVICE)
        source = open_model(f"random:{options.model}").with_kv_dtype(options.kv_dtype)
        config = EngineConfig(quantize=options.quantize, kv_dtype=options.kv_dtype)
        slots = options.slots or planned_slots(source.config, options.chip, options.quantize)
        with served_on(devices, source, config, slots) as served:
            bench = Bench(served, options.chip, options.quantize, options.model, folder)
            if "decode" in options.programs:
                wanted = wanted_rows(served, options.rows)
                for rows in wanted:
                    yield from bench.decode(rows)
                for busy in options.busy:
                    if busy not in wanted:
                        yield bench.decode_busy(busy)
            if "prefill" in options.programs:
                yield from map(bench.prefill, served.prefill_shapes)
                yield bench.head("score", served.prefill_tokens, served.programs.score)
            if "mixed" in options.programs:
                yield from bench.mixed()


def wanted_rows(served: Served, wanted: list[str] | None) -> list[int]:
    """Returns the numbers of slots of the decode programs to compile; "all" means that of all slots."""
    every = list(served.programs.decode)
    return [rows for rows in every if wanted is None or str(rows) in wanted or ("all" in wanted and rows == max(every))]


def planned_slots(model: ModelConfig, chip: str, quantize: str | None) -> int:
    """Returns the number of slots that `roost plan` names for the chip."""
    return compute_roofline(model, DEVICES[chip], 2, quantize=quantize).slots


@contextmanager
def dumped_schedules() -> Iterator[Path]:
    """Yields the folder into which libtpu, which must not be loaded yet, writes schedules."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = DUMP_OPTIONS.format(folder)
        yield Path(folder)


@dataclass(frozen=True)
class Bench:
    """Measures the programs of a served model.

    Attributes:
      served: The programs.
      chip: Name of the chip.
      quantize: Dtype of quantised matrices, or None.
      name: Name of the model.
      dumps: Folder into which the compiler writes schedules.
      compiled: Programs that were compiled before, by label.
    """

    served: Served
    chip: str
    quantize: str | None
    name: str
    dumps: Path
    compiled: dict[str, "Compiled | OutOfMemoryError"] = field(default_factory=dict)

    def decode(self, rows: int) -> Iterator[Row]:
        """Yields rows of the program for the first `rows` slots; for all slots one of unfilled windows too."""
        for sampling in ("greedy", "sampled"):
            yield self._decode_row(rows, rows, self._window - 1, "full", sampling)
        if rows == max(self.served.programs.decode):
            yield self._decode_row(rows, rows, self._window // 4 - 1, "quarter")

    def decode_busy(self, busy: int) -> Row:
        """Returns the row of the smallest program for this number of busy slots, greedy and with full windows."""
        rows = next(rows for rows in self.served.programs.decode if rows >= busy)
        return self._decode_row(rows, busy, self._window - 1, "full")

    def mixed(self) -> Iterator[Row]:
        """Yields the parts of the request of `MIXED_PROMPT` and `MIXED_REPLY` that have no row yet, and its own row."""
        rows, position = max(self.served.programs.decode), MIXED_PROMPT + MIXED_REPLY // 2
        first = self.head("first token", 1, self.served.programs.first_token)
        step = self._decode_row(rows, rows, position, f"at {position}")
        yield from (first, step)
        together = max(1.0, min(MAX_PREFILL_ROWS, rows / MIXED_REPLY))  # prompts that end between two decode steps
        shares = {self.prefill(PrefillShape(1, MIXED_PROMPT)): 1.0, first: 1 / together, step: MIXED_REPLY / rows}
        yield replace(
            step,
            program="mixed",
            tokens=MIXED_PROMPT + MIXED_REPLY,
            floor_bytes=round(_weighted(shares, "floor_bytes")),
            bytes_accessed=round(_weighted(shares, "bytes_accessed")),
            optimal_seconds=_weighted(shares, "optimal_seconds"),
            scheduled_seconds=_weighted(shares, "scheduled_seconds"),
            fits=all(part.fits for part in shares),
            without_end=sum(part.without_end for part in shares),
            without_bundles=sum(part.without_bundles for part in shares),
        )

    def _decode_row(self, rows: int, busy: int, position: int, window: str, sampling: str = "greedy") -> Row:
        """Returns the row of a decode program whose busy slots generate the token at a position below the window."""
        unfilled = self._ring_bytes(busy) * (self._window - position - 1) // self._window
        floor = size(self.served.params) + self._state_bytes(busy) - unfilled
        row = replace(self._row("decode", rows, busy, floor), busy=busy, window=window, sampling=sampling)
        attended = Attended(busy / rows, position, visited_share(position, self._window))
        return self._measured(row, self._compile(self.served.programs.decode[rows]), attended)

    def head(self, name: str, tokens: int, program: Program[Any]) -> Row:
        """Returns the row of a program that reads the embedding alone, for tokens of one prompt."""
        row = self._row(name, 1, tokens, floor_bytes=size(self.served.params["embedding"]))
        return self._measured(row, self._compile(program))

    def prefill(self, shape: PrefillShape) -> Row:
        """Returns the row of the program for a chunk of each of some prompts; scoring tokens is another program."""
        model = self.served
        (program,) = self.served.programs.prefill[shape]
        table = model.params["embedding"]
        looked_up = shape.length * model.config.width * jax.tree.leaves(table)[0].dtype.itemsize
        each = looked_up + state_bytes(model.config, model.dtype.itemsize)
        floor = size(model.params) - size(table) + shape.rows * each
        row = self._row("prefill", shape.rows, shape.rows * shape.length, floor)
        return self._measured(row, self._compile(program))

    def _row(self, program: str, rows: int, tokens: int, floor_bytes: int) -> Row:
        kv_dtype = self.served.config.kv_dtype or self.served.dtype.name
        made = (self.name, self.chip, self.served.slots, program, rows, rows, tokens)
        return Row(*made, "full", "greedy", kv_dtype, self.quantize, floor_bytes)

    @property
    def _window(self) -> int:
        return self.served.config.window

    def _state_bytes(self, rows: int) -> int:
        return size(self.served.pool.states) * rows // self.served.rows

    def _ring_bytes(self, rows: int) -> int:
        return rows * window_bytes(self.served.config, self.served.dtype.itemsize)

    def _compile(self, program: Program[Any]) -> "Compiled | OutOfMemoryError":
        """Compiles a program once, and keeps its schedules in a folder of their own."""
        if program.label not in self.compiled:
            compiled = compile_for_chips(self.served, program)
            own = self.dumps / program.label
            own.mkdir()
            for path in filter(Path.is_file, list(self.dumps.iterdir())):
                path.rename(own / path.name)
            self.compiled[program.label] = (
                compiled
                if isinstance(compiled, OutOfMemoryError)
                else Compiled(compiled, parse_module(compiled.text), Dump(own))
            )
        return self.compiled[program.label]

    def _measured(self, row: Row, compiled: "Compiled | OutOfMemoryError", attended: "Attended | None" = None) -> Row:
        """Returns a row with the costs of its program, of whose decode attention the part `attended` runs."""
        if isinstance(compiled, OutOfMemoryError):
            return replace(row, hbm_bytes=compiled.used_bytes)
        peak = DEVICES[self.chip].peak
        assert peak is not None
        rates = Rates(peak.flops_per_second, peak.int8_per_second, BANDWIDTHS[self.chip], CLOCKS[self.chip])
        times = estimate(compiled.module, compiled.dump, rates, attended, is_sampled=row.sampling == "sampled")
        memory = compiled.program.memory
        return replace(
            row,
            **times._asdict(),
            temp_bytes=memory.temp_bytes,
            hbm_bytes=memory.hbm_bytes,
            custom_calls=compiled.program.custom_calls,
            fits=True,
        )


@dataclass(frozen=True)
class Compiled:
    """A compiled program, its instructions and its schedules."""

    program: AheadOfTime
    module: Module
    dump: Dump


@dataclass(frozen=True)
class Attended:
    """Part of decode attention that runs.

    Attributes:
      busy: Share of the rows that are busy.
      position: Position of the new token of all of these.
      visited: Share of their rings that is read.
    """

    busy: float
    position: int
    visited: float


class Times(NamedTuple):
    """Bytes and both estimates of one run, as in `Row`."""

    bytes_accessed: int
    optimal_seconds: float
    scheduled_seconds: float
    without_end: int
    without_bundles: int


def _weighted(shares: Mapping[Row, float], name: str) -> float:
    return sum(share * getattr(part, name) for part, share in shares.items())


def visited_share(position: int, window: int) -> float:
    """Returns the share of a ring that a decode step at a position reads: whole tiles up to the new token's."""
    tile = READ_TILE if window % READ_TILE == 0 else window
    return min((position // tile + 1) * tile, window) / window


def estimate(module: Module, dump: Dump, rates: Rates, attended: Attended | None, *, is_sampled: bool) -> Times:
    """Returns the bytes and times of a run.

    Args:
      attended: Part of decode attention that counts; None without any.
      is_sampled: Whether rows are sampled rather than greedy.
    """
    moved, optimal, scheduled, without_end = 0, 0.0, dump.top_level / rates.cycles_per_second, 0
    schedules, without_bundles = names_of_schedules(module, dump), 0
    for computation, instruction, times in executed(module, int(is_sampled), rates):
        part = attended if instruction.name.startswith(ATTENTION) else None
        busy, visited, position = (1.0, 1.0, 0) if part is None else (part.busy, part.visited, part.position)
        cost = cost_of(module, computation, instruction)
        cost = Cost(cost.flops, cost.int8_ops, int(busy * visited * cost.hbm_bytes))
        seconds, (cycles, has_end) = rates.seconds(cost), cycles_of(dump, instruction, schedules, position)
        moved += times * cost.hbm_bytes
        optimal += times * seconds
        if not instruction.is_asynchronous:
            scheduled += times * max(seconds, busy * cycles / rates.cycles_per_second)
            without_end += not has_end
            without_bundles += is_call(instruction) and instruction.name not in schedules
    return Times(moved, optimal, max(scheduled, moved / rates.bytes_per_second), without_end, without_bundles)


def cycles_of(dump: Dump, instruction: Instruction, schedules: Mapping[str, str], position: int) -> tuple[int, bool]:
    """Returns the cycles of the function that an instruction calls, and whether its end is known.

    `schedules` are those of kernel calls; see `names_of_schedules`. The sampler's cycles are those of rows with a
    temperature and top-p, and those of decode attention of rows whose new tokens are at a position.
    """
    if instruction.is_free:
        return 0, True
    table = SAMPLED_NEEDS if instruction.name.startswith("sample") else ()
    if instruction.name.startswith(ATTENTION):
        table = (position,) * TABLE_WIDTH  # of every scalar: branches depend on no other
    name = schedules.get(instruction.name, instruction.name)
    return dump.cycles(name, table), dump.has_end(name, table)


def size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


# --- tables


def seconds(row: Fields) -> float:
    """Returns the slower of both estimates; infinity if the program does not fit."""
    return max(row["optimal_seconds"], row["scheduled_seconds"]) if row["fits"] else float("inf")


def speed(row: Fields) -> float:
    """Returns tokens per second by the slower of both estimates."""
    return float(row["tokens"]) / seconds(row)


def cells(row: Fields) -> tuple[str, ...]:
    """Returns the text of a row's columns: gigabytes, milliseconds, and tokens per second by the slower estimate.

    If a function's loops count once for want of a known end, or a kernel has no schedule, the scheduled time is a
    minimum and the speed a maximum.
    """
    floor, accessed, temp, hbm = (
        f"{row[name] / 1e9:.3f}" for name in ("floor_bytes", "bytes_accessed", "temp_bytes", "hbm_bytes")
    )
    known = (_name(row), str(row["rows"]), str(row["busy"]), row["sampling"], row["window"], floor)
    if not row["fits"]:
        return (*known, "", "", "", hbm, "no", "", "", "", "", "")
    ratio = f"{row['bytes_accessed'] / row['floor_bytes']:.3f}"
    at_least, at_most = ("> ", "< ") if row["without_end"] or row["without_bundles"] else ("", "")
    times = (f"{1e3 * row['optimal_seconds']:.2f} ms", f"{at_least}{1e3 * row['scheduled_seconds']:.2f} ms")
    rate = f"{at_most}{speed(row):,.0f}"
    return (*known, accessed, ratio, temp, hbm, "yes", *times, rate, limit(row), str(row["custom_calls"]))


def limit(row: Fields) -> str:
    """Returns the most tokens per second that `roost plan` gives the row's busy slots; "" for parts of a request."""
    if row["program"] not in ("decode", "prefill"):
        return ""
    kv_dtype = "int8" if row["kv_dtype"] == "int8" else None
    model = open_model(f"random:{row['model']}").with_kv_dtype(kv_dtype).config
    line = compute_roofline(model, DEVICES[row["chip"]], 2, quantize=row["quantize"])
    if row["program"] == "prefill":
        return f"{line.prefill_tokens_per_second():,.0f}"
    parts = {"full": model.window, "quarter": model.window // 4}
    filled = parts.get(row["window"]) or int(row["window"].removeprefix("at "))
    return f"{row['busy'] / line.decode_seconds(row['busy'], row['busy'] * filled):,.0f}"


def _name(row: Fields) -> str:
    """Returns the name of a row's program; of a request, with the tokens of its prompt and reply."""
    names = {"prefill": f"prefill {row['tokens'] // row['rows']}", "mixed": "mixed 512 + 128, a request"}
    return names.get(row["program"], row["program"])


def title(row: Fields) -> str:
    """Returns a line that names the model, the chip and the number of slots."""
    quantized = f", matrices in {row['quantize']}" if row["quantize"] else ""
    quantized += ", windows in int8" if row["kv_dtype"] == "int8" else ""
    name = {"2b": "RecurrentGemma 2B", "9b": "RecurrentGemma 9B"}.get(row["model"], row["model"])
    return f"{name} on one {row['chip']} chip, bfloat16{quantized}, {row['slots']:,} slots"


def as_table(rows: Sequence[Fields]) -> str:
    """Returns the rows of one model and chip as a Markdown table under its title."""
    lines = [f"{title(rows[0])}; bytes in GB:", "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
    return "\n".join([*lines, *(_line(cells(row)) for row in rows)])


def _line(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def as_markdown(rows: Sequence[Fields]) -> str:
    """Returns a table per model, chip and number of slots."""
    return "\n\n".join(as_table(list(own)) for _, own in groupby(rows, key=title))


if __name__ == "__main__":
    main()
