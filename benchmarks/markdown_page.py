"""Parts of the pages that benchmarks write."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any


def paragraph(words: str) -> str:
    """Returns words as lines of a page, whatever their line breaks."""
    return textwrap.fill(" ".join(words.split()), 118)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def where(machine: Mapping[str, Any]) -> str:
    """Returns a line about the machine of a measurement; see `roost.server.commands.bench.environment`."""
    return f"{machine['cpu']}, {machine['cpus']} cores, load average {machine['load_average']:.2f} before"
