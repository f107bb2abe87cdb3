"""Tables of Markdown, as the pages of docs/reference/ have them."""

import html
from collections.abc import Iterable, Iterator


def table(head: str, rows: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a table."""
    yield from (head, rule(head.count(" | ") + 1), *rows)


def wide_table(head: str, rows: Iterable[str]) -> Iterator[str]:
    """Yields a table of which the site shows each row as a block where the screen is narrow."""
    yield from ('<div class="wide" markdown>', "", *table(head, rows), "", "</div>")


def rule(columns: int) -> str:
    """Returns the line below a table's head."""
    return "|" + " --- |" * columns


def row(*cells: str) -> str:
    """Returns a row of cells; their line breaks become spaces."""
    return f"| {' | '.join(cell.replace(chr(10), ' ') for cell in cells)} |"


def code(text: str) -> str:
    """Returns a text as code in a cell. A bar would end the cell, and not all renderers take an escape in backticks."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"
