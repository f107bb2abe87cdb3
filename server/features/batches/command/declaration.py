"""Declares `roost batch`. Importing it costs little."""

from pathlib import Path
from typing import Annotated

import typer

from ....terminal.failure import exit_on_error
from ....terminal.help import MODEL_HELP, setting_option
from ....terminal.options import ApiKey, Dtype, KvDtype, Quantize


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
        str | None, typer.Option(help=f"Model to load: {MODEL_HELP}", metavar="MODEL", show_default="demo")
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
    slots: Annotated[str | None, setting_option("slots")] = None,
    prefill_chunk: Annotated[int | None, setting_option("prefill_chunk")] = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    kv_dtype: KvDtype = None,
    config: Annotated[
        Path | None, setting_option("config", "TOML file of settings, as `roost serve` reads it.")
    ] = None,
) -> None:
    """Run the requests in IN, on a model that is loaded here or on servers, and write the responses to OUT.

    Run the same command again after Ctrl-C or a crash: OUT is the record of what is done. The first Ctrl-C lets
    requests that are running end, a second one does not.
    """
    with exit_on_error():
        from .command import Options
        from .command import batch as run

        numbers = {"dtype": dtype, "quantize": quantize, "kv_dtype": kv_dtype}
        flags = {"model": model, "slots": slots, "prefill_chunk": prefill_chunk, "config": config, **numbers}
        status = run(Options(input, output, sort, url, api_key, concurrency, flags))
    raise typer.Exit(status)


command = batch
