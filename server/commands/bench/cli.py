"""Commands of `roost bench`. Slow imports happen when a command runs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from ...settings import SettingsError, load_settings
from ...terminal.failure import exit_on_error
from ...terminal.options import CommandGroup, takes_model_options

app = typer.Typer(
    cls=CommandGroup,
    help="Measure an engine or a server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Workload(StrEnum):
    """Workloads of the engine benchmark."""

    prefill = "prefill"
    decode = "decode"
    mixed = "mixed"


JsonFile = Annotated[
    str | None,
    typer.Option("--json", help="Write everything as JSON; - is stdout.", metavar="FILE", show_default=False),
]
SvgFile = Annotated[
    Path | None,
    typer.Option("--svg", help="Draw it; needs pip install '.\\[bench]'.", metavar="FILE", show_default=False),
]

MODEL_OPTIONS: Final = ("model", "dtype", "quantize", "kv_dtype", "prefill_chunk", "seed", "config")
SEED_HELP: Final = "Seed of random weights and of prompts."


@app.command()
@takes_model_options(*MODEL_OPTIONS, "slots", seed=SEED_HELP)
def engine(
    workload: Annotated[
        list[Workload] | None,
        typer.Option(
            help="prefill, decode or mixed; may be given several times.", show_default="all three", metavar="WORKLOAD"
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Requests that run at the same time.", show_default="the slots")
    ] = None,
    input_len: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens to generate for each.")] = 128,
    num_prompts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Requests of a run of prefill or mixed; decode has one per slot in use.",
            show_default="twice the concurrency",
        ),
    ] = None,
    request_rate: Annotated[
        str | None,
        typer.Option(
            help="For mixed: arrivals per second, as a Poisson process.",
            show_default="at the pace that keeps all slots in use busy",
            metavar="R",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each workload; the table has medians.")] = 3,
    json: JsonFile = None,
    **model_options: Any,
) -> None:
    """Run MODEL without HTTP: prefill, decode, and a mix of both.

    prefill generates one token per prompt; decode lets all requests decode together; mixed lets requests arrive while
    others decode.
    """
    with exit_on_error():
        settings = load_settings(model_options)
        from .engine.benchmark import EngineBenchOptions, bench_engine
        from .report import Outputs
        from .workload import parse_rate

        rate = None if request_rate is None else parse_rate("--request-rate", request_rate)
        workloads = [name.value for name in Workload if name in (workload or Workload)]
        options = EngineBenchOptions(settings, workloads, concurrency, input_len, output_len, num_prompts, rate, repeat)
        status = bench_engine(options, Outputs(json))
    raise typer.Exit(status)


@app.command()
def serve(
    limits: Annotated[
        list[str] | None, typer.Argument(help="Further limits of --goodput.", metavar="NAME:MS", hidden=True)
    ] = None,
    url: Annotated[str, typer.Option(help="The server, with or without /v1.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None,
        typer.Option(help="Id of the model.", show_default="the first that the server lists", metavar="NAME"),
    ] = None,
    endpoint: Annotated[Literal["completions", "chat"], typer.Option(help="API to use.")] = "completions",
    request_rate: Annotated[
        str | None,
        typer.Option(
            help="Requests per second, as a Poisson process, whether or not others have ended.",
            show_default="inf: all at once",
            metavar="R",
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Instead of a rate: number of open requests.", show_default=False),
    ] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Requests to measure.")] = 100,
    input_len: Annotated[
        str, typer.Option(help="Tokens (or words) of a prompt: 512, or 100:900 for any between.", metavar="N|LOW:HIGH")
    ] = "512",
    output_len: Annotated[str, typer.Option(help="max_tokens, in the same way.", metavar="N|LOW:HIGH")] = "128",
    prompt_text: Annotated[
        bool, typer.Option("--prompt-text", help="Send words, for servers that accept no token ids.")
    ] = False,
    vocab_size: Annotated[int, typer.Option(min=2, help="Bound above all token ids of prompts.")] = 256,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Request the full length; Roost, vLLM and SGLang support it.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 always takes the most likely token.")] = 0.0,
    api_key: Annotated[
        str | None, typer.Option(help="Sent as a bearer token.", metavar="KEY", show_default=False)
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before the measurement, one after the other.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that a request may take.")] = 600.0,
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            help="Also count the requests within limits in ms: ttft:500 itl:50 tpot:50 e2e:5000.",
            metavar="'NAME:MS ...'",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of prompts, lengths and arrival times.")] = 0,
    json: JsonFile = None,
    svg: SvgFile = None,
) -> None:
    """Measure any server with OpenAI's API, by streaming responses.

    Token counts are the server's; times are when its chunks arrive.
    """
    with exit_on_error():
        if limits and not goodput:
            raise SettingsError(f"{limits[0]!r}: no argument is expected; a server is given by --url")
        if concurrency is not None and request_rate is not None:
            raise SettingsError("--concurrency and --request-rate: give one of them")
        from ...client.http_client import Address, UrlError
        from .report import Outputs
        from .serve.benchmark import bench_serve
        from .serve.goodput import Objective
        from .serve.options import ServeBenchOptions
        from .workload import LengthRange, parse_rate

        try:
            address = Address.parse(url)
        except UrlError as error:
            raise SettingsError(f"--url {error}") from None
        options = ServeBenchOptions(
            address=address,
            url=url,
            model=model,
            endpoint=endpoint,
            request_rate=parse_rate("--request-rate", request_rate or "inf"),
            concurrency=concurrency,
            num_prompts=num_prompts,
            input_len=LengthRange.parse("--input-len", input_len),
            output_len=LengthRange.parse("--output-len", output_len),
            prompt_text=prompt_text,
            vocab_size=vocab_size,
            ignore_eos=ignore_eos,
            temperature=temperature,
            api_key=api_key,
            warmup=warmup,
            timeout_s=timeout,
            goodput=Objective.parse("--goodput", [*(goodput or ()), *(limits or ())]),
            seed=seed,
        )
        status = bench_serve(options, Outputs(json, svg))
    raise typer.Exit(status)
