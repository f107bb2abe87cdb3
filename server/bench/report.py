"""A benchmark's result as JSON for programs, and as a table for people."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..settings import SettingsError
from ..terminal.failure import CommandError
from .environment import machine, now, versions
from .plot import require_matplotlib


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where results go besides the table.

    Attributes:
      json: a file, "-" for stdout (the table then goes to stderr), or None.
      svg: a file, or None.
    """

    json: str | None = None
    svg: Path | None = None

    def check(self) -> None:
        """Finds out before anything slow is done what would fail after it.

        Raises:
          SettingsError: a folder is not there.
          CommandError: the plot cannot be drawn.
        """
        files = {"--json": None if self.json in (None, "-") else Path(self.json or ""), "--svg": self.svg}
        for option, file in files.items():
            if file is not None and (file.is_dir() or not file.resolve().parent.is_dir()):
                raise SettingsError(f"{option} {file}: give a file in a folder that exists")
        if self.svg is not None:
            require_matplotlib()

    def console(self) -> Console:
        """Where the table goes."""
        return Console(stderr=self.json == "-")

    def write_json(self, document: Mapping[str, Any]) -> None:
        """
        Raises:
          CommandError: the file cannot be written.
        """
        text = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        if self.json == "-":
            sys.stdout.write(text.decode())
            sys.stdout.flush()
        elif self.json is not None:
            write_file("--json", Path(self.json), text)


def write_file(option: str, path: Path, content: bytes) -> None:
    """
    Raises:
      CommandError: the file cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{option} {path}: {error.strerror}") from None


def opening(benchmark: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The start of a document: what is needed to run the benchmark again. Made before it runs."""
    return {
        "benchmark": benchmark,
        "started": now(),
        "versions": versions(),
        "machine": machine(),
        "options": options,
    }


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]], corner: str = "") -> Table:
    """A name at the left of each row, and numbers under the columns' names."""
    table = Table(show_header=any(columns))
    table.add_column(corner)
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def report(title: str, tables: Sequence[Table], notes: Sequence[str]) -> Group:
    """All that is printed. Titles and notes may hold anything, brackets too."""
    return Group(Text(title), *tables, *(Text(note) for note in notes))


def interruption(was_interrupted: bool) -> Sequence[str]:
    """A line for below the tables, where one is needed."""
    return ["interrupted: this is what was measured so far"] if was_interrupted else []


def rate(value: float | None) -> str:
    """Of something per second."""
    return number(value, 0 if value is not None and value >= 1000 else 1)


def number(value: float | int | None, digits: int = 1) -> str:
    """With separators; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def milliseconds(value: float | int | None) -> str:
    """As many digits as mean something."""
    if value is None:
        return "–"
    return number(value, 0 if value >= 1000 else 1 if value >= 10 else 2)


def pick(result: Mapping[str, Any], *path: str) -> Any:
    """A value inside a result; None where some part of the way is None."""
    value: Any = result
    for name in path:
        value = None if value is None else value[name]
    return value
