"""Pages of lists that are ordered by age. A page is found by an index, independent of the length of its list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .database import Transaction, placeholders


@dataclass(frozen=True, slots=True)
class PageSpec:
    """Position and size of a page.

    Attributes:
      limit: Maximum number of entries.
      after: Id of the entry that the page follows; None begins with the first.
      newest_first: Whether the list begins with the newest entry.
    """

    limit: int
    after: str | None = None
    newest_first: bool = False


@dataclass(frozen=True, slots=True)
class Page[Item]:
    """Entries of a page.

    Attributes:
      has_more: Whether entries follow.
    """

    items: Sequence[Item]
    has_more: bool

    def map[Other](self, convert: Callable[[Item], Other]) -> "Page[Other]":
        """Returns a page with each entry converted."""
        return Page([convert(item) for item in self.items], self.has_more)


def slice_page[Item](items: Sequence[Item], spec: PageSpec, id_of: Callable[[Item], str]) -> Page[Item] | None:
    """Returns a page of a list in memory; None if the list has no entry `spec.after`.

    Args:
      items: The whole list, oldest first.
    """
    ordered = items[::-1] if spec.newest_first else items
    start = 0
    if spec.after is not None:
        start = 1 + next((place for place, item in enumerate(ordered) if id_of(item) == spec.after), -1)
        if not start:
            return None
    return Page(ordered[start : start + spec.limit], start + spec.limit < len(ordered))


def read_page(
    transaction: Transaction,
    columns: str,
    source: str,
    values: Sequence[Any],
    spec: PageSpec,
    key: Sequence[str] = ("created", "id"),
) -> Page[tuple[Any, ...]] | None:
    """Returns the rows of a page; None if the list has no entry `spec.after`.

    Args:
      columns: Columns of the rows.
      source: Table and condition of the list, such as `entries WHERE tenant = ?`. The table has a column `id`, and an
        index of the condition's columns and the key.
      values: Values of the condition.
      key: Columns that order the list, oldest first.
    """
    comparison, direction = ("<", "DESC") if spec.newest_first else (">", "ASC")
    names, bound = ", ".join(key), tuple[Any, ...]()
    if spec.after is not None:
        bound = next(iter(transaction.rows(f"SELECT {names} FROM {source} AND id = ?", *values, spec.after)), ())
        if not bound:
            return None
    rows = transaction.rows(
        f"""
        SELECT {columns} FROM {source} {f"AND ({names}) {comparison} {placeholders(1, len(key))}" if bound else ""}
        ORDER BY {", ".join(f"{name} {direction}" for name in key)} LIMIT ?
        """,
        *values,
        *bound,
        spec.limit + 1,
    )
    return Page(rows[: spec.limit], len(rows) > spec.limit)
