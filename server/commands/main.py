"""The `roost` command. JAX takes seconds to import, so each command imports its module when it runs."""

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..features.index import modules_of
from ..settings import is_json_wanted, load_settings
from ..terminal.failure import FAILURE_STATUS, exit_on_error
from ..terminal.help import MODEL_HELP, CommandGroup, takes_model_options, takes_settings
from ..terminal.options import ApiKey
from .bench.cli import app as bench
from .sampling_options import MaxTokens, SamplingOptions, SamplingSeed, Temperature, TopK, TopP

app = typer.Typer(
    name="roost",
    cls=CommandGroup,
    help="An inference server for RecurrentGemma and other Griffin models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench, name="bench")

_AS_IN_SERVE: Final = "With --verify: as in serve."


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
    with exit_on_error(as_json=is_json_wanted(flags["log_format"]) or None):
        settings = load_settings(flags)
        from .serve import serve as run

        status = run(settings)
    raise typer.Exit(status)


@app.command(options_metavar="[OPTIONS] [MODEL]")
@takes_model_options("dtype", "quantize", "kv_dtype")
def generate(
    words: Annotated[
        list[str],
        typer.Argument(
            help=f"Prompt in quotes. MODEL in front of it replaces demo: {MODEL_HELP}",
            metavar="PROMPT",
            show_default=False,
        ),
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt, without the chat template.")] = False,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: SamplingSeed = None,
    load_state: Annotated[
        Path | None, typer.Option(help="Continue from a saved state.", metavar="FILE", show_default=False)
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(help="Save the state at the end.", metavar="FILE", show_default=False)
    ] = None,
    **model_options: Any,
) -> None:
    """Generate a response to PROMPT without a server. Only the response goes to stdout."""
    if len(words) > 2:
        raise typer.BadParameter("put the prompt in quotes", param_hint="PROMPT")
    with exit_on_error():
        from .generate import Options
        from .generate import generate as run

        *model, prompt = words
        settings = load_settings({"model": model[0] if model else "demo", **model_options})
        sampling = SamplingOptions(max_tokens, temperature, top_p, top_k, seed)
        status = run(Options(settings, prompt, raw, sampling, load_state, save_state))
    raise typer.Exit(status)


@app.command()
@takes_model_options("dtype", "quantize", "kv_dtype")
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
    api_key: ApiKey = None,
    system: Annotated[str, typer.Option(help="System prompt.", metavar="TEXT", show_default=False)] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: SamplingSeed = None,
    **model_options: Any,
) -> None:
    """Chat with a model that is loaded here, or with a running server. /help lists the commands.

    Each line of a pipe is a message. Only responses go to stdout.
    """
    with exit_on_error():
        from .chat.command import Options
        from .chat.command import chat as run

        sampling = SamplingOptions(max_tokens, temperature, top_p, top_k, seed)
        status = run(Options(model, url, api_key, system, sampling, model_options))
    raise typer.Exit(status)


for _module in modules_of("command.declaration"):
    app.command()(_module.command)


@app.command()
@takes_model_options("quantize", "kv_dtype", "slots", "prefill_chunk", slots=_AS_IN_SERVE, prefill_chunk=_AS_IN_SERVE)
def plan(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)],
    device: Annotated[
        str,
        typer.Option(help="TPU v4, v5e, v5p, v6e; GPU a100, a100-40gb, h100, h200, l4, l40s, a6000, rtx4090; or cpu."),
    ] = "v5e",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    mesh: Annotated[
        str, typer.Option(help="Chips that share slots (data) and the weights (model).", metavar="data=N,model=M")
    ] = "data=1,model=1",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Compile the programs of serve for v5e, v5p, v6e, a100, b200, h100 or l4; takes minutes."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --verify: print one JSON object.")] = False,
    **model_options: Any,
) -> None:
    """Show what MODEL needs on one device or several, how many requests fit, and what the roofline allows.

    Everything is computed; nothing is loaded or measured. With --verify, the compiler of the [tpu] or [cuda13]
    extra says what each program of serve takes on a chip, without one; the status is 1 if a program does not fit.
    """
    with exit_on_error():
        from .plan import print_plan
        from .plan_verification import print_verification

        if verify:
            settings = load_settings({"model": model, "dtype": dtype, "mesh": mesh, **model_options})
            fits = print_verification(settings, device, as_json=as_json)
            raise typer.Exit(0 if fits else FAILURE_STATUS)
        print_plan(model, device, dtype, model_options["quantize"], mesh, model_options["kv_dtype"])


@app.command()
@takes_model_options("quantize")
def convert(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False, metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="New folder.", metavar="DST")],
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.", show_default="each tensor's own")] = None,
    to: Annotated[str, typer.Option("--format", help="hf (safetensors) or orbax (the official one).")] = "hf",
    **model_options: Any,
) -> None:
    """Convert the checkpoint SRC to DST, in another format or precision, and verify it."""
    with exit_on_error():
        from .convert import run

        run(model, destination, dtype, model_options["quantize"], to)
