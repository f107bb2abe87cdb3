"""Compiles served programs with the real TPU compiler and estimates their time in two independent ways.

Requires libtpu, but no TPU.

    python benchmarks/tpu_programs.py --model 2b --chip v5e [--quantize int8] [--kv-dtype int8] [--slots N]
        [--rows 8 128] [--json]
    python benchmarks/tpu_programs.py --markdown results.jsonl...

The programs are those that `roost serve` compiles on the chip: same options, donation, sampling branches and, with the
`--slots` that `roost plan --verify` reports, number of slots. Every decode program and the prefill program of a whole
chunk are compiled once each.

`greedy` and `sampled` (temperature and top-p 0.9 in every row) are the same decode program. Its text is costed
instruction by instruction (`tpu_hlo`), and of the conditional around the sampler only the branch that runs. The
conditionals inside of it, for penalties, masks and log-probabilities, take the cheaper branch. So `bytes_accessed` are
the bytes of main memory that one run moves. `floor_bytes` is what must move: every weight once (in prefill only the
embedding's rows that are looked up) and, in decode, the filled part of the computed slots' state once.

`optimal_seconds` adds up one instruction after the other, by the compiler's rule: products at the chip's peak (int8 at
int8's), or bytes at the bandwidth that the compiler counts on. A Pallas kernel counts by its `CostEstimate`. Copies
between memories that run beside other work are added too.

`scheduled_seconds` adds up the bundles of every function's final schedule (`tpu_schedule`), at one cycle each, or the
time above where that is longer; copies that run beside other work count only if all bytes together take longer. It is a
lower bound: waits that no schedule shows are not in it.

The "quarter" row is the program of all slots with rings filled by a quarter: the attention kernel skips what is not
filled, so a quarter of its bytes and bundles is counted.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import jax
import orjson
from roost.engine.checkpoint.source import open_model
from roost.engine.core.config import EngineConfig
from roost.engine.core.mesh import ONE_DEVICE
from roost.engine.model.config import ModelConfig
from roost.engine.roofline import DEVICES, compute_roofline
from roost.engine.worker.aot import AheadOfTime, compile_for_chips, open_chips, served_on
from roost.engine.worker.program_memory import OutOfMemoryError
from roost.engine.worker.programs import PrefillShape, Program
from roost.engine.worker.served import ServedPrograms
from roost.kernels.sampling.pallas_tpu import _Need
from tpu_hlo import Cost, Instruction, Module, Rates, cost_of, executed, parse_module
from tpu_report import as_markdown, as_table
from tpu_schedule import Dump

CLOCKS: Final[Mapping[str, float]] = {"v5e": 1.5e9, "v6e": 1.75e9}
"""Cycles per second: peak operations by the operations of all matrix units per cycle."""

BANDWIDTHS: Final[Mapping[str, float]] = {"v5e": 737.7e9, "v6e": 1638e9}
"""Bytes of main memory per second that the compiler counts on; of the peak these are 0.9 and 1."""

QUARTER: Final = 0.25

DUMP_OPTIONS: Final = (
    "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles|hlo-details"
)

SAMPLED_NEEDS: Final = tuple(int(need in (_Need.ANYTHING, _Need.DRAW, _Need.TOP_P)) for need in _Need)
"""Row of the sampler's table of needs for 8 rows with a temperature and top-p."""

ATTENTION: Final = "window_attention_decode"


@dataclass(frozen=True)
class Row:
    """One program according to the compiler.

    Attributes:
      model: Name of the model.
      chip: Name of the chip.
      slots: Number of slots of the pool.
      program: "decode" or "prefill".
      rows: Slots that the program computes, or prompts that it prefills.
      tokens: Tokens that one run generates or prefills.
      window: Filled part of the attention windows: "full" or "quarter".
      sampling: "greedy" or "sampled".
      kv_dtype: Dtype of keys and values.
      quantize: Dtype of quantised matrices, or None.
      floor_bytes, bytes_accessed, optimal_seconds, scheduled_seconds: See the module; 0 if the program does not fit.
      temp_bytes: Bytes of temporaries.
      hbm_bytes: Main memory that the program takes while it runs.
      custom_calls: Number of calls of Pallas kernels.
      fits: Whether the compiler accepts the program.
      without_end: Number of executed instructions whose schedules have no known end, so that their loops count once.
    """

    model: str
    chip: str
    slots: int
    program: str
    rows: int
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
    arguments.add_argument("--programs", nargs="+", choices=["decode", "prefill"], default=["decode", "prefill"])
    arguments.add_argument("--prefill-chunk", type=int, default=EngineConfig().prefill_chunk)
    arguments.add_argument("--json", action="store_true", help="one line per row")
    arguments.add_argument("--markdown", nargs="+", type=Path, help="print tables of files that --json wrote")
    options = arguments.parse_args()
    if options.markdown:
        print(as_markdown([orjson.loads(line) for path in options.markdown for line in path.open("rb")]))
        return
    rows = []
    for row in measure(options):
        rows.append(asdict(row))
        if options.json:
            print(orjson.dumps(asdict(row)).decode(), flush=True)
        else:
            print(f"{row.program} x {row.rows}, {row.sampling}, {row.window} windows", file=sys.stderr)
    if not options.json:
        print(as_table(rows))


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """Compiles the decode programs in rising order of rows, then the prefill program of a whole chunk."""
    with dumped_schedules() as folder:
        devices = open_chips(options.chip, ONE_DEVICE)
        source = open_model(f"random:{options.model}").with_kv_dtype(options.kv_dtype)
        config = EngineConfig(quantize=options.quantize, kv_dtype=options.kv_dtype, prefill_chunk=options.prefill_chunk)
        slots = options.slots or planned_slots(source.config, options.chip, options.quantize)
        with served_on(devices, source, config, slots) as served:
            bench = Bench(served, options.chip, options.quantize, options.model, folder)
            if "decode" in options.programs:
                for rows in wanted_rows(served, options.rows):
                    yield from bench.decode(rows)
            if "prefill" in options.programs:
                yield bench.prefill(PrefillShape(1, options.prefill_chunk))


def wanted_rows(served: ServedPrograms, wanted: list[str] | None) -> list[int]:
    """Returns the numbers of slots of the decode programs to compile; "all" means that of all slots."""
    every = list(served.programs.decode)
    return [rows for rows in every if wanted is None or str(rows) in wanted or ("all" in wanted and rows == max(every))]


def planned_slots(model: ModelConfig, chip: str, quantize: str | None) -> int:
    """Returns the number of slots that `roost plan` names for the chip."""
    return compute_roofline(model, DEVICES[chip], 2, is_quantized=quantize is not None).slots


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
    """

    served: ServedPrograms
    chip: str
    quantize: str | None
    name: str
    dumps: Path

    def decode(self, rows: int) -> Iterator[Row]:
        """Yields rows of the program for the first `rows` slots; for all slots one of unfilled windows too."""
        compiled = self._compile(self.served.programs.decode[rows])
        states = self._state_bytes(rows)
        row = self._row("decode", rows, rows, floor_bytes=size(self.served.model.params) + states)
        for sampling in ("greedy", "sampled"):
            yield self._measured(replace(row, sampling=sampling), compiled)
        if rows == max(self.served.programs.decode):
            unfilled = int((1 - QUARTER) * self._ring_bytes(rows))
            yield self._measured(replace(row, window="quarter", floor_bytes=row.floor_bytes - unfilled), compiled)

    def prefill(self, shape: PrefillShape) -> Row:
        """Returns the row of the program for a chunk of one prompt; scoring its tokens is another program."""
        model = self.served.model
        (program,) = self.served.programs.prefill[shape]
        table = model.params["embedding"]
        looked_up = shape.length * model.config.width * jax.tree.leaves(table)[0].dtype.itemsize
        floor = size(model.params) - size(table) + looked_up + model.config.state_bytes(model.dtype.itemsize)
        return self._measured(self._row("prefill", 1, shape.length, floor_bytes=floor), self._compile(program))

    def _row(self, program: str, rows: int, tokens: int, floor_bytes: int) -> Row:
        kept = self.served.layout
        kv_dtype = self.served.model.config.kv_dtype or self.served.model.dtype.name
        return Row(
            self.name,
            self.chip,
            kept.slots,
            program,
            rows,
            tokens,
            "full",
            "greedy",
            kv_dtype,
            self.quantize,
            floor_bytes,
        )

    def _state_bytes(self, rows: int) -> int:
        return size(self.served.model.pool.states) * rows // self.served.layout.rows

    def _ring_bytes(self, rows: int) -> int:
        config = self.served.model.config
        per_slot = config.window * config.token_bytes(self.served.model.dtype.itemsize)
        return rows * config.block_types.count("attention") * per_slot

    def _compile(self, program: Program[Any]) -> "Compiled | OutOfMemoryError":
        for path in self.dumps.iterdir():
            path.unlink()
        compiled = compile_for_chips(self.served, program)
        if isinstance(compiled, OutOfMemoryError):
            return compiled
        return Compiled(compiled, parse_module(compiled.text), Dump(self.dumps))

    def _measured(self, row: Row, compiled: "Compiled | OutOfMemoryError") -> Row:
        if isinstance(compiled, OutOfMemoryError):
            return replace(row, hbm_bytes=compiled.used_bytes)
        peak = DEVICES[self.chip].peak
        assert peak is not None
        rates = Rates(peak.flops_per_second, peak.int8_per_second, BANDWIDTHS[self.chip], CLOCKS[self.chip])
        times = estimate(compiled.module, compiled.dump, rates, row)
        memory = compiled.program.memory
        return replace(
            row,
            bytes_accessed=times.hbm_bytes,
            temp_bytes=memory.temp_bytes,
            hbm_bytes=memory.hbm_bytes,
            optimal_seconds=times.optimal_seconds,
            scheduled_seconds=times.scheduled_seconds,
            custom_calls=compiled.program.custom_calls,
            fits=True,
            without_end=times.without_end,
        )


@dataclass(frozen=True)
class Compiled:
    """A compiled program, its instructions and its schedules."""

    program: AheadOfTime
    module: Module
    dump: Dump


@dataclass(frozen=True)
class Times:
    """Bytes and both estimates of one run; `without_end` as in `Row`."""

    hbm_bytes: int
    optimal_seconds: float
    scheduled_seconds: float
    without_end: int


def estimate(module: Module, dump: Dump, rates: Rates, row: Row) -> Times:
    """Returns the bytes and times of a run with the row's sampling and windows."""
    moved, optimal, scheduled, without_end = 0, 0.0, dump.top_level / rates.cycles_per_second, 0
    for computation, instruction, times in executed(module, 1 if row.sampling == "sampled" else 0, rates):
        share = QUARTER if row.window == "quarter" and instruction.name.startswith(ATTENTION) else 1.0
        cost = cost_of(module, computation, instruction)
        cost = Cost(cost.flops, cost.int8_ops, int(share * cost.hbm_bytes))
        seconds, (cycles, has_end) = rates.seconds(cost), cycles_of(dump, instruction)
        moved += times * cost.hbm_bytes
        optimal += times * seconds
        if not instruction.is_asynchronous:
            scheduled += times * max(seconds, share * cycles / rates.cycles_per_second)
            without_end += not has_end
    return Times(moved, optimal, max(scheduled, moved / rates.bytes_per_second), without_end)


def cycles_of(dump: Dump, instruction: Instruction) -> tuple[int, bool]:
    """Returns the cycles of an instruction's own function, and whether its end is known.

    The sampler's cycles are those of rows with a temperature and top-p.
    """
    if instruction.is_free:
        return 0, True
    table = SAMPLED_NEEDS if instruction.name.startswith("sample") else ()
    return dump.cycles(instruction.name, table), dump.has_end(instruction.name, table)


def size(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


if __name__ == "__main__":
    main()
