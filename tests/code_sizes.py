"""How much of Roost there may be to read: code lines and files of each room, and the way of a request.

A change that needs more edits this table, and says why. A change that needs less lowers it.
"""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]

MOST: Final[Mapping[str, int]] = {
    "code lines of server": 19460,
    "code lines of engine": 10360,
    "code lines of kernels": 3530,
    "code lines of tools": 4400,
    "code lines of benchmarks": 4900,
    "files of server": 159,
    "files of engine": 57,
    "files of kernels": 32,
    "code lines of the largest file": 360,
    "files on a request's way": 31,
    "changes of file on a request's way": 86,
    "functions on a request's way": 289,
}
"""The most that there may be. `tools/request_path.py` says what counts as a request's way. Code lines are lines without
docstrings, comments and blank lines; a file without code does not count."""

_NO_CODE: Final = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
)


def growth(sizes: Mapping[str, int]) -> list[str]:
    """Returns a line for each number that is larger than the table allows."""
    return [f"{name}: {number}, and at most {MOST[name]}" for name, number in sizes.items() if number > MOST[name]]


def sizes_of_rooms() -> dict[str, int]:
    """Returns the numbers of the table that sources alone decide."""
    lines = {room: dict(_files(room)) for room in ("server", "engine", "kernels", "tools", "benchmarks")}
    return {
        **{f"code lines of {room}": sum(files.values()) for room, files in lines.items()},
        **{f"files of {room}": len(lines[room]) for room in ("server", "engine", "kernels")},
        "code lines of the largest file": max(max(lines[room].values()) for room in ("server", "engine", "kernels")),
    }


def _files(room: str) -> Iterator[tuple[str, int]]:
    """Yields each file of a room that has code, with its code lines."""
    for path in sorted((ROOT / room).rglob("*.py")):
        if num_lines := code_lines(path.read_text()):
            yield path.relative_to(ROOT).as_posix(), num_lines


def code_lines(text: str) -> int:
    """Returns the number of lines of a Python file that have code."""
    lines = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)
