"""Writes the result of a benchmark as JSON and as tables, with the facts about the machine; and shows its progress."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ...settings import SettingsError
from ...terminal.failure import CommandError


def check_json_file(file: str | None) -> None:
    """Checks the value of `--json` before the benchmark runs.

    Raises:
      SettingsError: The folder of the file does not exist.
    """
    if file not in (None, "-") and (Path(file).is_dir() or not Path(file).resolve().parent.is_dir()):
        raise SettingsError(f"--json {file}: give a file in a folder that exists")


def write_report(tables: Group, document: Mapping[str, Any], file: str | None) -> None:
    """Prints tables, and writes the document as JSON.

    Args:
      file: File of the document, or "-" for stdout, which moves the tables to stderr; None writes no document.

    Raises:
      CommandError: The file cannot be written.
    """
    Console(stderr=file == "-").print(tables)
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if file == "-":
        sys.stdout.write(text.decode())
        sys.stdout.flush()
    elif file is not None:
        try:
            Path(file).write_bytes(text)
        except OSError as error:
            raise CommandError(f"--json {file}: {error.strerror}") from None


def opening(benchmark: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts that a document begins with. Call it before the benchmark runs."""
    return {
        "benchmark": benchmark,
        "started": now(),
        "versions": versions(),
        "machine": machine(),
        "options": options,
    }


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], corner: str = "") -> Table:
    """Returns a table whose rows have a name and numbers."""
    table = Table(show_header=any(columns))
    table.add_column(corner)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def titled(title: str, tables: Sequence[Table], notes: Sequence[str]) -> Group:
    """Returns tables with a title and notes, neither of which is parsed for markup."""
    return Group(Text(title), *tables, *(Text(note) for note in notes))


def interruption(was_interrupted: bool) -> Sequence[str]:
    """Returns the note about an interruption, if there was one."""
    return ["interrupted: these are the measurements so far"] if was_interrupted else []


def shown_rate(value: float | None) -> str:
    """Formats a rate per second."""
    return number(value, 0 if value is not None and value >= 1000 else 1)


def number(value: float | int | None, digits: int = 1) -> str:
    """Formats a number with separators; None is a dash."""
    return "–" if value is None else f"{value:,.{digits}f}"


def milliseconds(value: float | int | None) -> str:
    """Formats milliseconds with the digits that are significant."""
    if value is None:
        return "–"
    return number(value, 0 if value >= 1000 else 1 if value >= 10 else 2)


def pick(result: Mapping[str, Any], *path: str) -> Any:
    """Returns the value at a path of names; None if a part of the path is None."""
    value: Any = result
    for name in path:
        value = None if value is None else value[name]
    return value


_INTERVAL_S: Final = 0.25
"""Minimum time between two drawings, which disturb the measurement."""

type Advance = Callable[[int], None]
"""Advances the bar by a number of steps."""


@contextlib.contextmanager
def progress_bar(description: str, total: int) -> Iterator[Advance]:
    """Shows a bar on stderr during the `with` block."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    bar = Progress(*columns, *times, console=console, transient=True, auto_refresh=False)
    if not console.is_terminal:
        yield lambda count: None
        return
    with bar:
        yield _Advancer(bar, description, total)


class _Advancer:
    def __init__(self, bar: Progress, description: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total)
        self._pending = 0
        self._drawn = time.monotonic()

    def __call__(self, count: int) -> None:
        self._pending += count
        if (now := time.monotonic()) - self._drawn >= _INTERVAL_S:
            self._bar.update(self._task, advance=self._pending, refresh=True)
            self._pending, self._drawn = 0, now


_PACKAGES: Final = ("roost", "jax", "jaxlib", "numpy", "flax")


def machine() -> Mapping[str, Any]:
    """Returns facts about this machine, and its load average."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_average": os.getloadavg()[0],
    }


def versions() -> Mapping[str, str]:
    """Returns the versions of Python and of installed packages."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def now() -> str:
    """Returns the time of day in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def resident_bytes() -> int:
    """Returns the bytes of this process in RAM, or their peak if the system does not report the current number."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file() and (found := re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return found[1]
    return platform.processor() or platform.machine()
