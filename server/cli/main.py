"""The `roost` command. JAX takes seconds to import, so each command imports what it needs when it runs."""

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bench.cli import app as bench
from ..settings import is_json_wanted, load_settings
from ..terminal.failure import errors_in_one_line
from ..terminal.help import MODEL_HELP, CommandGroup, setting_option, takes_settings
from .sampling_options import SamplingOptions

app = typer.Typer(
    name="roost",
    cls=CommandGroup,
    help="An inference server for RecurrentGemma and other Griffin models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"roost {importlib.metadata.version('roost')}")
        raise typer.Exit
    return wanted


@app.callback()
def roost(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
@takes_settings
def serve(**flags: Any) -> None:
    """Serve MODEL over HTTP, with OpenAI's API and a chat page.

    Each flag is also an environment variable (ROOST_MAX_QUEUE) and a key of the config file (max_queue).
    """
    with errors_in_one_line(as_json=is_json_wanted(flags["log_format"]) or None):
        settings = load_settings(flags)
        from .serve import serve as run

        status = run(settings)
    raise typer.Exit(status)


MaxTokens = Annotated[int | None, typer.Option(help="Maximum number of tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 always takes the most likely token; the default is the model's.")
]
TopP = Annotated[float | None, typer.Option(help="Probability mass to sample from; the default is the model's.")]
TopK = Annotated[int | None, typer.Option(help="Number of tokens to sample from; the default is the model's.")]
SamplingSeed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
Dtype = Annotated[str | None, setting_option("dtype")]
Quantize = Annotated[str | None, setting_option("quantize")]


@app.command(options_metavar="[OPTIONS] [MODEL]")
def generate(
    words: Annotated[
        list[str],
        typer.Argument(
            help=f"In quotes. Put MODEL in front of it for another than demo: {MODEL_HELP}",
            metavar="PROMPT",
            show_default=False,
        ),
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt instead of answering it.")] = False,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: SamplingSeed = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    load_state: Annotated[
        Path | None, typer.Option(help="Go on from a state that was saved.", metavar="FILE", show_default=False)
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(help="Save the state at the end.", metavar="FILE", show_default=False)
    ] = None,
) -> None:
    """Answer PROMPT here on the terminal, without a server. Only the answer goes to stdout."""
    if len(words) > 2:
        raise typer.BadParameter("put the prompt in quotes", param_hint="PROMPT")
    with errors_in_one_line():
        from .generate import Options
        from .generate import generate as run

        *model, prompt = words
        flags = {"model": model[0] if model else "demo", "dtype": dtype, "quantize": quantize}
        settings = load_settings(flags)
        sampling = SamplingOptions(max_tokens, temperature, top_p, top_k, seed)
        status = run(Options(settings, prompt, raw, sampling, load_state, save_state))
    raise typer.Exit(status)


@app.command()
def chat(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"With --url, an id of the server's models, by default the first. Without, demo or: {MODEL_HELP}",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Talk to this server, such as http://127.0.0.1:8000, instead of loading a model here.",
            metavar="URL",
            show_default=False,
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="The server's; others can read it here, but not in ROOST_API_KEY.",
            envvar="ROOST_API_KEY",
            metavar="KEY",
            show_default=False,
        ),
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt.", metavar="TEXT", show_default=False)] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: SamplingSeed = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
) -> None:
    """Talk to a model: one that is loaded here, or a running server's. /help lists what can be typed.

    Lines of a pipe are questions, too; only answers go to stdout.
    """
    with errors_in_one_line():
        from .chat.command import Options
        from .chat.command import chat as run

        sampling = SamplingOptions(max_tokens, temperature, top_p, top_k, seed)
        status = run(Options(model, url, api_key, system, sampling, dtype, quantize))
    raise typer.Exit(status)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)],
    device: Annotated[
        str,
        typer.Option(help="TPU v4, v5e, v5p, v6e; GPU a100, a100-40gb, h100, h200, l4, l40s, a6000, rtx4090; or cpu."),
    ] = "v5e",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    quantize: Quantize = None,
    mesh: Annotated[
        str, typer.Option(help="Chips that share slots (data) and the weights (model).", metavar="data=N,model=M")
    ] = "data=1,model=1",
) -> None:
    """Say what MODEL needs on one device or several, how many requests fit, and what the roofline allows.

    Everything is computed; nothing is loaded or measured.
    """
    with errors_in_one_line():
        from .plan import print_plan

        print_plan(model, device, dtype, quantize, mesh)


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False, metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="A folder that is not there yet.", metavar="DST")],
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.", show_default="each tensor's own")] = None,
    quantize: Quantize = None,
    to: Annotated[str, typer.Option("--format", help="hf (safetensors) or orbax (the official one).")] = "hf",
) -> None:
    """Write the checkpoint SRC anew as DST, in another format or precision, and check what was written."""
    with errors_in_one_line():
        from .convert import run

        run(model, destination, dtype, quantize, to)
