"""Parts of the pages that benchmarks write: paragraphs, tables, the machine and the measured tree."""

import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def paragraph(words: str) -> str:
    """Returns words as lines of a page, whatever their line breaks."""
    return textwrap.fill(" ".join(words.split()), 118)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def where(machine: Mapping[str, Any]) -> str:
    """Returns a line about the machine of a measurement; see `roost.server.commands.bench.report`."""
    return f"{machine['cpu']}, {machine['cpus']} cores, load average {machine['load_average']:.2f} before"


def commit() -> str:
    """Returns the commit that is checked out; empty outside a clone."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
