"""The `roost` command. JAX takes seconds to import, so each command imports its module when it runs."""

import importlib.metadata
from typing import Annotated, Any, Final

import typer

from ..features.index import modules_of
from ..settings import is_json_wanted, load_settings
from ..terminal.exits import exit_on_error
from ..terminal.options import CommandGroup, ServeCommand, takes_options, takes_settings
from .options import (
    ChatSessionOptions,
    ConvertOptions,
    EngineBenchOptions,
    GenerateOptions,
    PlanOptions,
    ReportOptions,
    ServeBenchOptions,
)

app = typer.Typer(
    name="roost",
    cls=CommandGroup,
    help="An inference server for RecurrentGemma and other Griffin models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

bench = typer.Typer(
    cls=CommandGroup,
    help="Measure an engine or a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(bench, name="bench")

_LOCAL_MODEL: Final = ("dtype", "quantize", "kv_dtype", "lora")
"""Settings that are options of commands with a model in this process."""


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


@app.command(cls=ServeCommand)
@takes_settings
def serve(**flags: Any) -> None:
    """Serve MODEL over HTTP, with OpenAI's API and a chat page.

    Each flag is also an environment variable (ROOST_MAX_QUEUE) and a key of the config file (max_queue).
    """
    with exit_on_error(*flags, as_json=is_json_wanted(flags["log_format"]) or None):
        settings = load_settings(flags)
        from .serve import serve as run

        status = run(settings)
    raise typer.Exit(status)


@app.command(options_metavar="[OPTIONS] [MODEL]")
@takes_options(GenerateOptions, *_LOCAL_MODEL)
def generate(options: GenerateOptions) -> int:
    """Generate a response to PROMPT without a server. Only the response goes to stdout."""
    if len(options.words) > 2:
        raise typer.BadParameter("put the prompt in quotes", param_hint="PROMPT")
    from .generate import generate as run

    return run(options)


@app.command()
@takes_options(ChatSessionOptions, *_LOCAL_MODEL)
def chat(options: ChatSessionOptions) -> int:
    """Chat with a model that is loaded here, or with a running server. /help lists the commands.

    Each line of a pipe is a message. Only responses go to stdout.
    """
    from .chat import ServerChat
    from .chat import chat as run

    if options.url is not None:
        return run(ServerChat(options.url, options), options)
    from .local_chat import LocalChat

    return run(LocalChat(options), options)


for _module in modules_of("command"):
    app.command()(_module.command)


@app.command()
@takes_options(
    PlanOptions,
    *("quantize", "kv_dtype", "slots", "prefill_chunk", "speculative_config"),
    slots="With --verify or --load: as in serve.",
    prefill_chunk="With --verify: as in serve.",
)
def plan(options: PlanOptions) -> int:
    """Show the memory that MODEL needs on one device or several, how many requests fit, and the limits of the roofline.

    Everything is computed; nothing is loaded or measured. With --verify, the compiler of the [tpu] or [cuda13] extra
    reports the memory that each program of serve takes on a chip, without one; the status is 1 if a program does not
    fit. With --load, a simulation of a replica computes how many replicas serve a load, such as --load 512+128@40/s.
    """
    from .plan import plan as run

    return run(options)


@app.command()
@takes_options(
    ReportOptions, "dtype", "quantize", "kv_dtype", "slots", "prefill_chunk", "compile_cache", "without_kernels"
)
def report(options: ReportOptions) -> int:
    """Check that Roost computes correct results on this machine's device, measure it, and write a page to send.

    Every kernel is compared with float32, and the demo model with responses that come with Roost; then MODEL is
    measured. A kernel that fails is named and replaced by XLA, and the report continues. The status is 1 if anything
    failed.
    """
    from .report.command import report as run

    return run(options)


@app.command()
@takes_options(ConvertOptions, "quantize", "lora")
def convert(options: ConvertOptions) -> int:
    """Convert the checkpoint SRC to DST, in another format or precision, and verify it."""
    from .convert import convert as run

    return run(options)


@bench.command("engine")
@takes_options(
    EngineBenchOptions,
    *("model", "dtype", "quantize", "kv_dtype", "prefill_chunk", "seed", "config", "slots"),
    seed="Seed of random weights and of prompts.",
)
def bench_engine(options: EngineBenchOptions) -> int:
    """Run MODEL without HTTP: prefill, decode, and a mix of both.

    prefill generates one token per prompt; decode lets all requests decode together; mixed lets requests arrive while
    others decode.
    """
    from .bench.engine import bench_engine as run

    return run(options)


@bench.command("serve")
@takes_options(ServeBenchOptions)
def bench_serve(options: ServeBenchOptions) -> int:
    """Measure any server with OpenAI's API, by streaming responses.

    Token counts are the server's; times are when its chunks arrive.
    """
    from .bench.serve import bench_serve as run

    return run(options)
