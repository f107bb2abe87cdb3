"""Declares `roost batch`. Importing it costs little."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ....terminal.failure import exit_on_error
from ....terminal.options import ApiKey, takes_model_options


@takes_model_options("slots", "prefill_chunk", "dtype", "quantize", "kv_dtype", "lora", "config")
def batch(
    input: Annotated[
        Path, typer.Argument(help="Requests, one a line, in the format of OpenAI's Batch API.", metavar="IN.jsonl")
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="Responses, one a line, in the order in which they end. Lines that are in it already are not sent.",
            metavar="OUT.jsonl",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Model to load, as MODEL of `roost serve`.", metavar="MODEL", show_default="demo")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Send the lines to this server, or to several, separated by commas, instead of loading a model here.",
            metavar="URL[,URL...]",
            show_default=False,
        ),
    ] = None,
    api_key: ApiKey = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="With --url: lines that each server works on at a time.", show_default="64"),
    ] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Bring OUT into the order of IN at the end.")] = False,
    **model_options: Any,
) -> None:
    """Run the requests in IN, on a model that is loaded here or on servers, and write the responses to OUT.

    Run the same command again after Ctrl-C or a crash: OUT records which requests have ended. The first Ctrl-C waits
    for running requests, a second one does not.
    """
    with exit_on_error():
        from .command import BatchOptions
        from .command import batch as run

        settings = {"model": model, **model_options}
        status = run(BatchOptions(input, output, sort, url, api_key, concurrency, settings))
    raise typer.Exit(status)


command = batch
