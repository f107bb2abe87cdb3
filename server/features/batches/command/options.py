"""Options of `roost batch`. Importing them costs little."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ....terminal.options import ApiKey


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """Options of `roost batch`."""

    input: Annotated[Path, typer.Argument(metavar="IN.jsonl")]
    """Requests, one a line, in the format of OpenAI's Batch API."""
    output: Annotated[Path, typer.Argument(metavar="OUT.jsonl")]
    """Responses, one a line, in the order in which they end. Lines that are in it already are not sent."""
    model: Annotated[str | None, typer.Option(metavar="MODEL", show_default="demo")] = None
    """Model to load, as MODEL of `roost serve`."""
    url: Annotated[str | None, typer.Option(metavar="URL[,URL...]", show_default=False)] = None
    """Send the lines to this server, or to several, separated by commas, instead of loading a model here."""
    api_key: ApiKey = None
    concurrency: Annotated[int | None, typer.Option(min=1, show_default="64")] = None
    """With --url: lines that each server works on at a time."""
    sort: Annotated[bool, typer.Option("--sort")] = False
    """Bring OUT into the order of IN at the end."""
    settings: Mapping[str, Any] = field(default_factory=dict)
