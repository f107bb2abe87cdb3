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

    input: Annotated[
        Path, typer.Argument(help="Requests, one a line, in the format of OpenAI's Batch API.", metavar="IN.jsonl")
    ]
    output: Annotated[
        Path,
        typer.Argument(
            help="Responses, one a line, in the order in which they end. Lines that are in it already are not sent.",
            metavar="OUT.jsonl",
        ),
    ]
    model: Annotated[
        str | None, typer.Option(help="Model to load, as MODEL of `roost serve`.", metavar="MODEL", show_default="demo")
    ] = None
    url: Annotated[
        str | None,
        typer.Option(
            help="Send the lines to this server, or to several, separated by commas, instead of loading a model here.",
            metavar="URL[,URL...]",
            show_default=False,
        ),
    ] = None
    api_key: ApiKey = None
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="With --url: lines that each server works on at a time.", show_default="64"),
    ] = None
    sort: Annotated[bool, typer.Option("--sort", help="Bring OUT into the order of IN at the end.")] = False
    settings: Mapping[str, Any] = field(default_factory=dict)
