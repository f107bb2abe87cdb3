"""`roost plan --verify`: compiles the programs of `serve` for a TPU or GPU, and prints whether they fit."""

import sys
from dataclasses import asdict

import orjson
from rich.console import Console
from rich.table import Table

from ...engine import ConfigError, Verification, VerifiedProgram, shown_bytes, verify_plan
from ..assembly.service import engine_config
from ..model_hub import find_model
from ..settings import Settings

_NOTE = (
    "Nothing ran: memory and kernels are the compiler's, for the very programs that serve compiles. HBM is a chip's "
    "memory while the program runs, with weights, slots, results and the code of all programs."
)


def print_verification(settings: Settings, device: str, *, as_json: bool) -> bool:
    """Prints the memory of each program of a served model on a chip; returns whether all programs fit.

    Raises:
      ConfigError: The device has no compiler here, the mesh is left open, or fewer than 8 slots fit.
      CheckpointError: The model does not exist, or its weights do not fit it.
    """
    config = engine_config(settings)
    if config.shards is None:
        raise ConfigError("mesh must name its chips for --verify, such as data=1,model=4, not auto")
    source = find_model(settings.model)
    found = verify_plan(source, config, device, _report)
    if as_json:
        print(orjson.dumps(as_object(found)).decode())
        return found.fits
    console = Console(highlight=False)
    console.print(f"{source.name} on {device}, {_slots(found)}", style="italic", markup=False)
    console.print(as_table(found))
    console.print(_NOTE, style="dim", markup=False)
    return found.fits


def as_object(found: Verification) -> dict[str, object]:
    """Returns a verification as a JSON object."""
    names = ("name", "rows", "hbm_bytes", "temp_bytes", "custom_calls", "fits")
    programs = [{name: asdict(program)[name] for name in names} for program in found.programs]
    return {"slots": found.slots, "hbm_limit_bytes": found.hbm_limit_bytes, "programs": programs}


def as_table(found: Verification) -> Table:
    """Returns a verification as a table."""
    table = Table("program", title=f"limit {shown_bytes(found.hbm_limit_bytes)} on each chip", title_justify="left")
    for name in ("HBM", "temporaries", "kernels", "estimate", "fits"):
        table.add_column(name, justify="right")
    for program in found.programs:
        table.add_row(program.name, *_cells(program))
    return table


def _cells(program: VerifiedProgram) -> tuple[str, ...]:
    temporaries = "" if program.temp_bytes is None else shown_bytes(program.temp_bytes)
    kernels = "" if program.custom_calls is None else str(program.custom_calls)
    estimate = "" if program.optimal_seconds is None else f"{1000 * program.optimal_seconds:.2f} ms"
    return shown_bytes(program.hbm_bytes), temporaries, kernels, estimate, "yes" if program.fits else "NO"


def _slots(found: Verification) -> str:
    """Returns the number of slots, and the estimate if programs did not fit it."""
    estimated = found.estimated_slots
    less = "" if estimated in (None, found.slots) else f" (the estimate of {estimated:,} does not fit)"
    return f"{found.slots:,} slots{less}"


def _report(slots: int, done: int, total: int) -> None:
    print(f"{slots:,} slots: {done} of {total} programs compiled", file=sys.stderr, flush=True)
