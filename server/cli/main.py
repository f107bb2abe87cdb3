"""The `roost` command. JAX takes seconds to import, so each command imports what it needs when it runs."""

import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from ..bench.cli import app as bench
from ..settings import is_json_wanted, load_settings
from ..terminal.failure import errors_in_one_line
from ..terminal.help import (
    CACHE,
    CAPACITY,
    DEVICES,
    HTTP,
    LOGS,
    MODEL,
    MODEL_HELP,
    QUANTIZE_HELP,
    SECURITY,
    SHUTDOWN,
    Group,
    flag,
    shown_default,
)
from .sampling_options import SamplingOptions

app = typer.Typer(
    name="roost",
    cls=Group,
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
def serve(
    model: Annotated[
        str | None,
        typer.Argument(help=MODEL_HELP, show_default=shown_default("model"), metavar="MODEL"),
    ] = None,
    config: Annotated[
        Path | None,
        flag("config", "TOML file with any of these settings, such as max_queue = 64.", MODEL, "FILE"),
    ] = None,
    served_model_name: Annotated[
        str | None,
        flag("served_model_name", "The model's id for clients.", MODEL, "ID", default="the directory's name"),
    ] = None,
    dtype: Annotated[
        str | None, flag("dtype", "auto (the checkpoint's own), float32 or bfloat16.", MODEL, "DTYPE")
    ] = None,
    quantize: Annotated[str | None, flag("quantize", QUANTIZE_HELP, MODEL, "int8")] = None,
    seed: Annotated[int | None, flag("seed", "Seed of random weights.", MODEL)] = None,
    max_tokens_limit: Annotated[
        int | None, flag("max_tokens_limit", "Maximum number of tokens that a request may generate.", MODEL)
    ] = None,
    max_prompt_tokens: Annotated[
        int | None, flag("max_prompt_tokens", "Maximum number of tokens of a prompt.", MODEL)
    ] = None,
    strict: Annotated[bool | None, flag("strict", "Refuse requests with unknown fields.", MODEL)] = None,
    slots: Annotated[
        str | None,
        flag(
            "slots",
            "Requests that run at the same time: a number, or auto for what memory allows.",
            CAPACITY,
            "auto|N",
            default="auto",
        ),
    ] = None,
    reserved_slots: Annotated[
        str | None,
        flag(
            "reserved_slots",
            "Slots kept free for API keys with nothing running.",
            CAPACITY,
            "auto|N",
            default="1 with several keys, else 0",
        ),
    ] = None,
    max_queue: Annotated[int | None, flag("max_queue", "Requests that may wait for a slot.", CAPACITY)] = None,
    max_queue_tokens: Annotated[
        int | None,
        flag("max_queue_tokens", "Prompt tokens of waiting requests together.", CAPACITY, default="no limit"),
    ] = None,
    prefill_chunk: Annotated[
        int | None, flag("prefill_chunk", "Maximum number of prompt tokens in one step.", CAPACITY)
    ] = None,
    mesh: Annotated[
        str | None,
        flag(
            "mesh",
            "Devices that share the slots (data) and the model's weights (model).",
            DEVICES,
            "auto|data=N,model=M",
        ),
    ] = None,
    coordinator: Annotated[
        str | None, flag("coordinator", "Address of the first of several hosts.", DEVICES, "HOST:PORT")
    ] = None,
    num_hosts: Annotated[int | None, flag("num_hosts", "Number of hosts that serve together.", DEVICES)] = None,
    host_index: Annotated[int | None, flag("host_index", "Index of this host, from 0.", DEVICES)] = None,
    host: Annotated[str | None, flag("host", "Address to listen on; 0.0.0.0 is all.", HTTP, "ADDRESS")] = None,
    port: Annotated[int | None, flag("port", "Port to listen on; 0 takes a free one.", HTTP)] = None,
    admin_port: Annotated[
        int | None, flag("admin_port", "Serve metrics and /debug on this port instead.", HTTP)
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        flag(
            "allow_origin",
            "Web pages that may use this server, such as https://example.org, or *.",
            HTTP,
            "ORIGIN",
            default="",
        ),
    ] = None,
    max_body_bytes: Annotated[int | None, flag("max_body_bytes", "Maximum size of a request's body.", HTTP)] = None,
    ssl_certfile: Annotated[
        Path | None, flag("ssl_certfile", "Certificate chain in PEM, to serve HTTPS.", SECURITY, "FILE")
    ] = None,
    ssl_keyfile: Annotated[
        Path | None, flag("ssl_keyfile", "Private key, unless the certificate's file has it.", SECURITY, "FILE")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        flag(
            "api_key",
            "Require this key, or one of several. Other users of this machine can read it here, but not in "
            "ROOST_API_KEY.",
            SECURITY,
            "[NAME:]KEY",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, flag("api_key_file", "File with such keys, one a line.", SECURITY, "FILE")
    ] = None,
    admin_key: Annotated[
        list[str] | None,
        flag("admin_key", "Offer /debug to clients with this key; better in ROOST_ADMIN_KEY.", SECURITY, "KEY"),
    ] = None,
    state_key: Annotated[
        str | None,
        flag(
            "state_key",
            "Sign states that are saved as files, and accept no others; better in ROOST_STATE_KEY.",
            SECURITY,
            "KEY",
        ),
    ] = None,
    cache_salt_by_key: Annotated[
        bool | None,
        flag("cache_salt_by_key", "Never share the prefix cache between different API keys.", SECURITY),
    ] = None,
    state_cache_gib: Annotated[
        str | None,
        flag(
            "state_cache_gib",
            "Host memory for the prefix cache, in GiB; 0 turns it off.",
            CACHE,
            "auto|GIB",
            default="an eighth of free memory",
        ),
    ] = None,
    state_cache_inexact: Annotated[
        bool | None,
        flag("state_cache_inexact", "Also cache the states of generated text, which are not exact bit for bit.", CACHE),
    ] = None,
    state_cache_dir: Annotated[
        Path | None, flag("state_cache_dir", "Folder in which the prefix cache survives a restart.", CACHE, "DIR")
    ] = None,
    state_cache_dir_gib: Annotated[
        float | None, flag("state_cache_dir_gib", "Maximum size of that folder, in GiB.", CACHE)
    ] = None,
    compile_cache: Annotated[
        str | None,
        flag(
            "compile_cache",
            "Folder for compiled programs, which make later starts quicker; off keeps none.",
            CACHE,
            "DIR|off",
            default="the user's cache folder",
        ),
    ] = None,
    request_timeout: Annotated[
        str | None, flag("request_timeout", "Seconds that a request may take.", SHUTDOWN, "SECONDS|off")
    ] = None,
    stall_timeout: Annotated[
        float | None,
        flag(
            "stall_timeout",
            "Seconds until a client that reads nothing of its response is dropped.",
            SHUTDOWN,
            "SECONDS",
        ),
    ] = None,
    step_timeout: Annotated[
        float | None,
        flag(
            "step_timeout",
            "Seconds after which a device step is considered stuck, and the process ends.",
            SHUTDOWN,
            "SECONDS",
        ),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        flag("drain_timeout", "Seconds that open requests may take after SIGTERM or Ctrl-C.", SHUTDOWN, "SECONDS"),
    ] = None,
    drain_lag: Annotated[
        float | None,
        flag("drain_lag", "Seconds after SIGTERM in which new requests are still accepted.", SHUTDOWN, "SECONDS"),
    ] = None,
    log_level: Annotated[
        str | None, flag("log_level", "Least level of log lines: debug, info, warning or error.", LOGS, "LEVEL")
    ] = None,
    log_format: Annotated[
        str | None, flag("log_format", "Format of log lines; json writes an object per line.", LOGS, "text|json")
    ] = None,
    access_log: Annotated[str | None, flag("access_log", "Log a line for each request.", LOGS, "on|off", "on")] = None,
    metrics_compat: Annotated[
        str | None, flag("metrics_compat", "Report metrics under vLLM's names too.", LOGS, "vllm")
    ] = None,
    otlp_traces_endpoint: Annotated[
        str | None,
        flag("otlp_traces_endpoint", "Send OpenTelemetry spans there; the path is /v1/traces.", LOGS, "URL"),
    ] = None,
) -> None:
    """Serve MODEL over HTTP, with OpenAI's API and a chat page.

    Each flag is also an environment variable (ROOST_MAX_QUEUE) and a key of the config file (max_queue).
    """
    flags = {name: value for name, value in locals().items() if value not in (None, [])}
    with errors_in_one_line(as_json=is_json_wanted(log_format) or None):
        settings = load_settings(flags)
        from .serve import serve as run

        status = run(settings)
    raise typer.Exit(status)


MaxTokens = Annotated[int | None, typer.Option(help="Maximum number of tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 always takes the likeliest token; the default is the model's.")
]
TopP = Annotated[float | None, typer.Option(help="Probability mass to sample from; the default is the model's.")]
TopK = Annotated[int | None, typer.Option(help="Number of tokens to sample from; the default is the model's.")]
SamplingSeed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
Dtype = Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.", show_default=shown_default("dtype"))]
Quantize = Annotated[str | None, typer.Option(help=QUANTIZE_HELP, metavar="int8", show_default=False)]


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
        settings = load_settings({name: value for name, value in flags.items() if value is not None})
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
    quantize: Annotated[str | None, typer.Option(help=QUANTIZE_HELP, metavar="int8", show_default="none")] = None,
    to: Annotated[str, typer.Option("--format", help="hf (safetensors) or orbax (the official one).")] = "hf",
) -> None:
    """Write the checkpoint SRC anew as DST, in another format or precision, and check what was written."""
    with errors_in_one_line():
        from .convert import run

        run(model, destination, dtype, quantize, to)
