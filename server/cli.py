"""The `roost` command. JAX takes seconds to import, so each command imports what it needs when it runs."""

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from .bench.cli import app as bench
from .failing import errors_in_one_line
from .help import MODEL_HELP, QUANTIZE_HELP, shown_default
from .settings import load_settings

app = typer.Typer(
    name="roost",
    help="An inference server for RecurrentGemma and other Griffin models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
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
def serve(
    model: Annotated[
        str | None, typer.Argument(help=MODEL_HELP, show_default=shown_default("model"), metavar="[MODEL]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=shown_default("host"))] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes a free one.", show_default=shown_default("port"))
    ] = None,
    served_model_name: Annotated[
        str | None,
        typer.Option(help="The model's id for clients.", show_default="the directory's name", metavar="ID"),
    ] = None,
    admin_port: Annotated[
        int | None, typer.Option(help="Tell metrics on this port instead of the other.", show_default="none")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Demand this key, or one of several; others can read it here, but not in ROOST_API_KEY.",
            metavar="[NAME:]KEY",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file with keys like these, one a line.", metavar="FILE")
    ] = None,
    admin_key: Annotated[
        list[str] | None,
        typer.Option(help="Offer /debug to who has this key; better in ROOST_ADMIN_KEY.", metavar="KEY"),
    ] = None,
    ssl_certfile: Annotated[
        Path | None, typer.Option(help="A certificate chain in PEM, to serve HTTPS.", metavar="FILE")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, typer.Option(help="Its private key, where the certificate's file has none.", metavar="FILE")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web pages that may use this server, such as https://example.org, or *.", metavar="ORIGIN"),
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(help="Of a request.", show_default=shown_default("max_body_bytes"))
    ] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="The longest prompt.", show_default="none")] = None,
    metrics_compat: Annotated[
        str | None, typer.Option(help="Tell metrics by vLLM's names too.", metavar="vllm", show_default="none")
    ] = None,
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(
            help="Send OpenTelemetry spans there, such as http://localhost:4318/v1/traces.",
            metavar="URL",
            show_default="none",
        ),
    ] = None,
    log_format: Annotated[
        str | None, typer.Option(help="text or json.", show_default=shown_default("log_format"))
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16.", show_default=shown_default("dtype"))
    ] = None,
    quantize: Annotated[str | None, typer.Option(help=QUANTIZE_HELP, show_default="none", metavar="int8")] = None,
    seed: Annotated[int | None, typer.Option(help="For random weights.", show_default=shown_default("seed"))] = None,
    slots: Annotated[
        str | None,
        typer.Option(
            help="Requests that run at the same time: a number, or auto for what memory allows.",
            show_default=shown_default("slots"),
            metavar="auto|N",
        ),
    ] = None,
    mesh: Annotated[
        str | None,
        typer.Option(
            help="Devices that share slots (data) and the model's weights (model).",
            show_default=shown_default("mesh"),
            metavar="auto|data=N,model=M",
        ),
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(help="The first of several hosts, and a port.", show_default="none", metavar="HOST:PORT"),
    ] = None,
    num_hosts: Annotated[
        int | None, typer.Option(help="Hosts that serve together.", show_default=shown_default("num_hosts"))
    ] = None,
    host_index: Annotated[
        int | None, typer.Option(help="Which of them this is.", show_default=shown_default("host_index"))
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Requests that may wait.", show_default=shown_default("max_queue"))
    ] = None,
    max_queue_tokens: Annotated[
        int | None, typer.Option(help="Tokens of prompts that may wait.", show_default="no limit")
    ] = None,
    reserved_slots: Annotated[
        str | None,
        typer.Option(
            help="Slots kept free for API keys with nothing running.",
            show_default="1 with several keys, else 0",
            metavar="auto|N",
        ),
    ] = None,
    prefill_chunk: Annotated[
        int | None,
        typer.Option(help="Prompt tokens read in one step.", show_default=shown_default("prefill_chunk")),
    ] = None,
    state_cache_gib: Annotated[
        str | None,
        typer.Option(
            help="Host memory for states of prompts that were read, in GiB; 0 remembers none.",
            show_default="an eighth of what is available",
            metavar="auto|GIB",
        ),
    ] = None,
    state_cache_inexact: Annotated[
        bool | None,
        typer.Option(
            "--state-cache-inexact",
            help="Go on from what generating has left too, though not bit for bit.",
            show_default="off",
        ),
    ] = None,
    state_cache_dir: Annotated[
        Path | None,
        typer.Option(help="A folder in which they outlive the process.", show_default="none", metavar="DIR"),
    ] = None,
    state_cache_dir_gib: Annotated[
        float | None,
        typer.Option(help="The most that may lie there.", show_default=shown_default("state_cache_dir_gib")),
    ] = None,
    state_key: Annotated[
        str | None,
        typer.Option(
            help="Sign states that are saved as files, and take no others; better in ROOST_STATE_KEY.", metavar="KEY"
        ),
    ] = None,
    cache_salt_by_key: Annotated[
        bool | None,
        typer.Option(
            "--cache-salt-by-key", help="Requests with different keys share no remembered states.", show_default="off"
        ),
    ] = None,
    compile_cache: Annotated[
        str | None,
        typer.Option(
            help="Where compiled programs are kept, for a quick start: a folder, or off.",
            show_default="the user's cache folder",
            metavar="DIR|off",
        ),
    ] = None,
    max_tokens_limit: Annotated[
        int | None, typer.Option(help="The most tokens that a request may generate.", show_default="none")
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Refuse requests with unknown fields.", show_default="off")
    ] = None,
    request_timeout: Annotated[
        str | None,
        typer.Option(
            help="Seconds that a request may take.",
            show_default=shown_default("request_timeout"),
            metavar="SECONDS|off",
        ),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds that requests may go on after SIGTERM.",
            show_default=shown_default("drain_timeout"),
            metavar="SECONDS",
        ),
    ] = None,
    drain_lag: Annotated[
        float | None,
        typer.Option(
            help="Seconds after SIGTERM in which new requests are still taken.",
            show_default=shown_default("drain_lag"),
            metavar="SECONDS",
        ),
    ] = None,
    step_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds after which a device step is taken for stuck, and the process ends.",
            show_default=shown_default("step_timeout"),
            metavar="SECONDS",
        ),
    ] = None,
    stall_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds after which a client that reads nothing of its answer is dropped.",
            show_default=shown_default("stall_timeout"),
            metavar="SECONDS",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with any of these: max_queue = 64.", metavar="FILE")
    ] = None,
) -> None:
    """Serve MODEL over HTTP, as OpenAI's API. Each flag is also a variable: ROOST_MAX_QUEUE."""
    flags = {name: value for name, value in locals().items() if value not in (None, [])}
    with errors_in_one_line():
        settings = load_settings(flags)
        from .serve import serve as run

        status = run(settings)
    raise typer.Exit(status)


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
    max_tokens: Annotated[int, typer.Option(help="The most tokens to generate.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token.", show_default="the model's")
    ] = None,
    top_p: Annotated[float | None, typer.Option(show_default="the model's")] = None,
    top_k: Annotated[int | None, typer.Option(show_default="the model's")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32 or bfloat16.", show_default=shown_default("dtype"))
    ] = None,
    quantize: Annotated[str | None, typer.Option(help=QUANTIZE_HELP, metavar="int8", show_default="none")] = None,
    load_state: Annotated[
        Path | None, typer.Option(help="Go on from a state that was saved.", metavar="FILE", show_default="none")
    ] = None,
    save_state: Annotated[
        Path | None, typer.Option(help="Save the state at the end.", metavar="FILE", show_default="none")
    ] = None,
) -> None:
    """Answer PROMPT here on the terminal, without a server."""
    if len(words) > 2:
        raise typer.BadParameter("put the prompt in quotes", param_hint="PROMPT")
    with errors_in_one_line():
        from .generate import Options
        from .generate import generate as run

        *model, prompt = words
        flags = {"model": model[0] if model else "demo", "dtype": dtype, "quantize": quantize}
        settings = load_settings({name: value for name, value in flags.items() if value is not None})
        sampling = (max_tokens, temperature, top_p, top_k, seed)
        status = run(Options(settings, prompt, raw, *sampling, load_state, save_state))
    raise typer.Exit(status)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False)],
    device: Annotated[str, typer.Option(help="v4, v5e, v5p, v6e or h100.")] = "v5e",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    quantize: Annotated[str | None, typer.Option(help=QUANTIZE_HELP, metavar="int8", show_default="none")] = None,
    mesh: Annotated[
        str, typer.Option(help="Chips that share slots (data) and the weights (model).", metavar="data=N,model=M")
    ] = "data=1,model=1",
) -> None:
    """Say what MODEL needs on one device or several, how many requests fit, and how fast it could be; loads nothing."""
    with errors_in_one_line():
        from .plan import print_plan

        print_plan(model, device, dtype, quantize, mesh)


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False, metavar="SRC")],
    destination: Annotated[Path, typer.Argument(help="A folder that is not there yet.", metavar="DST")],
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.", show_default="each tensor's own")] = None,
    quantize: Annotated[str | None, typer.Option(help=QUANTIZE_HELP, metavar="int8", show_default="none")] = None,
    to: Annotated[str, typer.Option("--format", help="hf (safetensors) or orbax (the official one).")] = "hf",
) -> None:
    """Write the checkpoint SRC anew as DST, in another format or precision, and check what was written."""
    with errors_in_one_line():
        from .convert import run

        run(model, destination, dtype, quantize, to)
