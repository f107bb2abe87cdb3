"""The `roost` command. JAX takes seconds to import, so each command imports its module when it runs."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ..features.index import modules_of
from ..settings import SettingsError, is_json_wanted, load_settings
from ..terminal.failure import FAILURE_STATUS, exit_on_error
from ..terminal.options import (
    MODEL_HELP,
    ApiKey,
    CommandGroup,
    ServeCommand,
    completion,
    takes_model_options,
    takes_settings,
)
from .bench.cli import app as bench
from .sampling_options import SAMPLING_NAMES, MaxTokens, SamplingOptions, SamplingSeed, Temperature, TopK, TopP

app = typer.Typer(
    name="roost",
    cls=CommandGroup,
    help="An inference server for RecurrentGemma and other Griffin models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench, name="bench")

_TPUS: Final = ("v4", "v5e", "v5p", "v6e", "v7x")
_GPUS: Final = (
    *("a100", "a100-40gb", "h100", "h100-pcie", "h100-nvl", "gh200", "h200", "l4", "l40", "l40s", "a6000", "rtx4090"),
)
_FORMATS: Final = {"hf": "safetensors", "orbax": "the official one"}
"""Checkpoint formats. Like the devices, the engine knows them; without its import a shell completes them at once."""
_DTYPES: Final = ("float32", "bfloat16")

_PLAN_NAMES: Final = (
    "device",
    "dtype",
    "quantize",
    "kv_dtype",
    "mesh",
    "slots",
    "speculative_config",
    "load",
    "ttft-p99",
    "itl-p99",
)
_AS_IN_SERVE: Final = "With --verify: as in serve."
_SLOTS: Final = "With --verify or --load: as in serve."


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
@takes_model_options("dtype", "quantize", "kv_dtype", "lora")
def generate(
    words: Annotated[
        list[str],
        typer.Argument(
            help=f"Prompt in quotes, or - for stdin. MODEL in front of it replaces demo: {MODEL_HELP}",
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
    with exit_on_error(*SAMPLING_NAMES):
        from .generate import GenerateOptions
        from .generate import generate as run

        *model, prompt = words
        settings = load_settings({"model": model[0] if model else "demo", **model_options})
        sampling = SamplingOptions(max_tokens, temperature, top_p, top_k, seed)
        text = sys.stdin.read() if prompt == "-" else prompt
        status = run(GenerateOptions(settings, text, raw, sampling, load_state, save_state))
    raise typer.Exit(status)


@app.command()
@takes_model_options("dtype", "quantize", "kv_dtype", "lora")
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
    with exit_on_error(*SAMPLING_NAMES):
        from .chat.command import ChatSessionOptions
        from .chat.command import chat as run

        sampling = SamplingOptions(max_tokens, temperature, top_p, top_k, seed)
        status = run(ChatSessionOptions(model, url, api_key, system, sampling, model_options))
    raise typer.Exit(status)


for _module in modules_of("command.declaration"):
    app.command()(_module.command)


@app.command()
@takes_model_options(
    "quantize",
    "kv_dtype",
    "slots",
    "prefill_chunk",
    "speculative_config",
    slots=_SLOTS,
    prefill_chunk=_AS_IN_SERVE,
)
def plan(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)],
    device: Annotated[
        str,
        typer.Option(
            help=f"TPU {', '.join(_TPUS)}; GPU {', '.join(_GPUS)}; or cpu.",
            autocompletion=completion((*_TPUS, *_GPUS, "cpu")),
        ),
    ] = "v5e",
    dtype: Annotated[
        str, typer.Option(help=f"{' or '.join(_DTYPES)}.", autocompletion=completion(_DTYPES))
    ] = "bfloat16",
    mesh: Annotated[
        str, typer.Option(help="Chips that share slots (data) and the weights (model).", metavar="data=N,model=M")
    ] = "data=1,model=1",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compile the programs of serve for v5e, v5p, v6e, v7x, a100, b200, h100 or l4; takes minutes.",
        ),
    ] = False,
    load: Annotated[
        list[str] | None,
        typer.Option(
            help="Plan replicas for requests of this many tokens in and out; several options are one mix.",
            metavar="IN+OUT@RATE/s",
            show_default=False,
        ),
    ] = None,
    ttft_p99: Annotated[
        str, typer.Option(help="With --load: target for the time to first token.", metavar="TIME")
    ] = "1s",
    itl_p99: Annotated[
        str, typer.Option(help="With --load: target for the time between two tokens.", metavar="TIME")
    ] = "100ms",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    **model_options: Any,
) -> None:
    """Show the memory that MODEL needs on one device or several, how many requests fit, and the limits of the roofline.

    Everything is computed; nothing is loaded or measured. With --verify, the compiler of the [tpu] or [cuda13] extra
    reports the memory that each program of serve takes on a chip, without one; the status is 1 if a program does not
    fit. With --load, a simulation of a replica computes how many replicas serve a load, such as --load 512+128@40/s.
    """
    with exit_on_error(*_PLAN_NAMES):
        from ...engine import NO_DRAFTS, ConfigError
        from ..assembly.service import speculation_of
        from .load_plan import print_load_plan
        from .plan import compute_plan, print_plan
        from .plan_verification import print_verification

        if verify and load:
            raise SettingsError("--verify and --load: give one of them")
        given = load_settings({"model": model, "speculative_config": model_options["speculative_config"]})
        speculation = speculation_of(given)
        if verify:
            if speculation is not None:
                raise ConfigError(NO_DRAFTS)
            settings = load_settings({"model": model, "dtype": dtype, "mesh": mesh, **model_options})
            fits = print_verification(settings, device, as_json=as_json)
            raise typer.Exit(0 if fits else FAILURE_STATUS)
        numbers = model_options["quantize"], mesh, model_options["kv_dtype"]
        plan = compute_plan(model, device, dtype, *numbers, speculation)
        if not load:
            print_plan(plan, as_json=as_json)
            return
        slots = load_settings({"model": model, "slots": model_options["slots"]}).slots
        print_load_plan(plan, load, ttft_p99, itl_p99, slots, as_json=as_json)


@app.command()
@takes_model_options("dtype", "quantize", "kv_dtype", "slots", "prefill_chunk", "compile_cache", "without_kernels")
def report(
    model: Annotated[
        str, typer.Argument(help=f"Model to measure. {MODEL_HELP}", metavar="MODEL", show_default=True)
    ] = "random:2b",
    out: Annotated[Path, typer.Option(help="Folder for report.md, report.json and the profile.", metavar="DIR")] = Path(
        "roost-report"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the job, the profile and most speeds.")] = False,
    compile_only: Annotated[
        str | None,
        typer.Option(
            help="Only compile all that would run for a chip: v5e, h100 ...", metavar="CHIP", show_default=False
        ),
    ] = None,
    **model_options: Any,
) -> None:
    """Check that Roost computes correct results on this machine's device, measure it, and write a page to send.

    Every kernel is compared with float32, and the demo model with responses that come with Roost; then MODEL is
    measured. A kernel that fails is named and replaced by XLA, and the report continues. The status is 1 if anything
    failed.
    """
    with exit_on_error(*model_options):
        from .report.command import report as run
        from .report.compilation import compile_report
        from .report.options import ReportOptions

        given = {
            name: value for name, value in model_options.items() if value is not None and name != "without_kernels"
        }
        settings = load_settings({"model": model, **model_options})
        options = ReportOptions({"model": model, **given}, str(out), quick, settings.without_kernels)
        status = run(options) if compile_only is None else compile_report(options, compile_only)
    raise typer.Exit(status)


@app.command()
@takes_model_options("quantize", "lora")
def convert(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False, metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="New folder.", metavar="DST")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"{' or '.join(_DTYPES)}.", show_default="each tensor's own", autocompletion=completion(_DTYPES)
        ),
    ] = None,
    to: Annotated[
        str,
        typer.Option(
            "--format",
            help=f"{' or '.join(f'{name} ({what})' for name, what in _FORMATS.items())}.",
            autocompletion=completion(tuple(_FORMATS)),
        ),
    ] = "hf",
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="With --quantize int4: text file for whose activations the matrices are quantised, or `default` for a "
            "text that comes with Roost. Answers differ less from the original's; takes minutes to hours.",
            show_default="none",
            metavar="FILE",
        ),
    ] = None,
    **model_options: Any,
) -> None:
    """Convert the checkpoint SRC to DST, in another format or precision, and verify it."""
    with exit_on_error("dtype", "quantize", "format", "calibrate"):
        from .convert import run

        lora = model_options["lora"] or ()
        run(model, destination, dtype, model_options["quantize"], to, lora, calibrate)
