"""The report as a page in Markdown: a section for each part, with tables of the JSON file's values."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from .parts import PARTS

_SEND: Final = (
    "Send this page and the JSON file beside it as an issue of the kind *Report of a device*: "
    "`docs/how-to/benchmark.md` says how."
)

_MAX_CELL: Final = 100
"""Maximum characters of a cell."""


def as_page(document: Mapping[str, Any]) -> str:
    """Returns a report in Markdown."""
    return "\n\n".join(_blocks(document)) + "\n"


def _blocks(document: Mapping[str, Any]) -> Iterator[str]:
    parts: Mapping[str, Mapping[str, Any]] = document["parts"]
    device = parts.get("machine", {}).get("device", {"kind": "an unknown device"})
    yield f"# Report of Roost on {device['kind']}"
    yield _verdict(document)
    for number, part in enumerate((part for part in PARTS if part.name in parts), 1):
        found = {name: value for name, value in parts[part.name].items() if name not in ("problems", "seconds")}
        yield f"## {number}. {part.title}"
        if "error" in found:
            yield f"**Did not end**: {found['error']}"
        else:
            yield from (part.about, *_tables(found)) if part.about else _tables(found)
        yield f"Took {parts[part.name]['seconds']:.0f} s."
    yield _SEND


def _verdict(document: Mapping[str, Any]) -> str:
    problems: Sequence[str] = document["problems"]
    if not problems:
        return "All checks passed."
    lines = "\n".join(f"- {problem}" for problem in problems)
    kernels = ", ".join(document["without_kernels"])
    after = f"\n\nThe parts after the second one ran without {kernels}: XLA computed in its place." if kernels else ""
    return f"**{len(problems)} problems**:\n\n{lines}{after}"


def _tables(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields a table of each list of objects, and one of all other values."""
    lists = {
        name: value
        for name, value in found.items()
        if isinstance(value, list) and any(isinstance(each, Mapping) for each in value)
    }
    for value in lists.values():
        rows = [dict(_cells(each)) for each in value]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        yield _table(columns, [[row.get(column, "–") for column in columns] for row in rows])
    if others := list(_cells({name: value for name, value in found.items() if name not in lists})):
        yield _table(("what", "value"), others)


def _cells(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the values within an object, each with the names that lead to it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _cells(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", _shown(value)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "**no**"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}"
        case list() | tuple():
            return ", ".join(map(_shown, value))
        case _:
            return str(value)[:_MAX_CELL]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
