"""Writes the result of a benchmark as JSON and as tables."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ...settings import SettingsError
from ...terminal.failure import CommandError
from .environment import machine, now, versions
from .plot import require_matplotlib


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs in addition to the tables.

    Attributes:
      json: File, or "-" for stdout, which moves the tables to stderr; None writes no JSON.
      svg: File; None draws nothing.
    """

    json: str | None = None
    svg: Path | None = None

    def check(self) -> None:
        """Checks the outputs before the benchmark runs.

        Raises:
          SettingsError: The folder of a file does not exist.
          CommandError: matplotlib is not installed.
        """
        files = {"--json": None if self.json in (None, "-") else Path(self.json or ""), "--svg": self.svg}
        for option, file in files.items():
            if file is not None and (file.is_dir() or not file.resolve().parent.is_dir()):
                raise SettingsError(f"{option} {file}: give a file in a folder that exists")
        if self.svg is not None:
            require_matplotlib()

    def console(self) -> Console:
        """Returns the console for tables."""
        return Console(stderr=self.json == "-")

    def write_json(self, document: Mapping[str, Any]) -> None:
        """Writes the document to the JSON output, if there is one.

        Raises:
          CommandError: The file cannot be written.
        """
        text = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        if self.json == "-":
            sys.stdout.write(text.decode())
            sys.stdout.flush()
        elif self.json is not None:
            write_file("--json", Path(self.json), text)


def write_file(option: str, path: Path, content: bytes) -> None:
    """Writes the file of an option.

    Raises:
      CommandError: The file cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{option} {path}: {error.strerror}") from None


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


def report(title: str, tables: Sequence[Table], notes: Sequence[str]) -> Group:
    """Returns tables with a title and notes, neither of which is parsed for markup."""
    return Group(Text(title), *tables, *(Text(note) for note in notes))


def interruption(was_interrupted: bool) -> Sequence[str]:
    """Returns the note about an interruption, if there was one."""
    return ["interrupted: these are the measurements so far"] if was_interrupted else []


def rate(value: float | None) -> str:
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
