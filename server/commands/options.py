"""Options of the commands, each declared once: `--help` shows these descriptions, and the commands read the values.

Does not import the engine, which clients of a server do not need. `None` leaves a value to the default that the
description names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from ..settings import Settings, load_settings
from ..terminal.options import MODEL_HELP, ApiKey, completion

_TPUS: Final = "v4, v5e, v5p, v6e, v7x"
_GPUS: Final = "a100, a100-40gb, h100, h100-pcie, h100-nvl, gh200, h200, l4, l40, l40s, a6000, rtx4090"
"""Devices, which the engine knows, too; without its import a shell completes them immediately."""
_Dtype = Literal["float32", "bfloat16"]

JsonFile = Annotated[
    str | None,
    typer.Option(help="Write everything as JSON; - is stdout.", metavar="FILE", show_default=False),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """Options named like parameters of `SamplingParams`."""

    max_tokens: Annotated[int | None, typer.Option(min=1)] = None
    """Maximum number of tokens to generate."""
    temperature: Annotated[float | None, typer.Option()] = None
    """0 always takes the most likely token; the default is the model's."""
    top_p: Annotated[float | None, typer.Option()] = None
    """Probability mass to sample from; the default is the model's."""
    top_k: Annotated[int | None, typer.Option()] = None
    """Number of tokens to sample from; the default is the model's."""
    seed: Annotated[int | None, typer.Option()] = None
    """The same seed gives the same response."""

    def sampling(self) -> dict[str, Any]:
        """Returns the sampling parameters that are set, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(SamplingOptions)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions(SamplingOptions):
    """Options of `roost generate`."""

    words: Annotated[
        list[str],
        typer.Argument(
            help=f"Prompt in quotes, or - for stdin. MODEL in front of it replaces demo: {MODEL_HELP}",
            metavar="PROMPT",
            show_default=False,
        ),
    ]
    raw: Annotated[bool, typer.Option("--raw")] = False
    """Continue the prompt, without the chat template."""
    max_tokens: Annotated[int | None, typer.Option(min=1)] = 256
    """Maximum number of tokens to generate."""
    load_state: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, exists=True, dir_okay=False)
    ] = None
    """Continue from a saved state."""
    save_state: Annotated[Path | None, typer.Option(metavar="FILE", show_default=False)] = None
    """Save the state at the end."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatSessionOptions(SamplingOptions):
    """Options of `roost chat`."""

    model: Annotated[
        str | None,
        typer.Argument(
            help=f"With --url, an id of the server's models, by default the first. Without, demo or: {MODEL_HELP}",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None
    url: Annotated[str | None, typer.Option(metavar="URL", show_default=False)] = None
    """Talk to this server, such as http://127.0.0.1:8000, instead of loading a model here."""
    api_key: ApiKey = None
    system: Annotated[str, typer.Option(metavar="TEXT", show_default=False)] = ""
    """System prompt."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of `roost plan`."""

    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)]
    device: Annotated[
        str,
        typer.Option(
            help=f"TPU {_TPUS}; GPU {_GPUS}; or cpu.", autocompletion=completion(f"{_TPUS}, {_GPUS}, cpu".split(", "))
        ),
    ] = "v5e"
    dtype: Annotated[_Dtype, typer.Option(metavar="DTYPE")] = "bfloat16"
    """float32 or bfloat16."""
    mesh: Annotated[str, typer.Option(metavar="data=N,model=M")] = "data=1,model=1"
    """Chips that share slots (data) and the weights (model)."""
    verify: Annotated[bool, typer.Option("--verify")] = False
    """Compile the programs of serve for v5e, v5p, v6e, v7x, a100, b200, h100 or l4; takes minutes."""
    load: Annotated[list[str] | None, typer.Option(metavar="IN+OUT@RATE/s", show_default=False)] = None
    """Plan replicas for requests of this many tokens in and out; several options are one mix."""
    ttft_p99: Annotated[str, typer.Option(metavar="TIME")] = "1s"
    """With --load: target for the time to first token."""
    itl_p99: Annotated[str, typer.Option(metavar="TIME")] = "100ms"
    """With --load: target for the time between two tokens."""
    as_json: Annotated[bool, typer.Option("--json")] = False
    """Print one JSON object."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """Options of `roost report`."""

    model: Annotated[
        str, typer.Argument(help=f"Model to measure. {MODEL_HELP}", metavar="MODEL", show_default=True)
    ] = "random:2b"
    out: Annotated[Path, typer.Option(metavar="DIR")] = Path("roost-report")
    """Folder for report.md, report.json and the profile."""
    quick: Annotated[bool, typer.Option("--quick")] = False
    """Leave out the job, the profile and most speeds."""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def given(self) -> dict[str, Any]:
        """Returns the settings that were given, except `without_kernels`."""
        return {name: value for name, value in self.settings.items() if name != "without_kernels" and value is not None}

    @property
    def without_kernels(self) -> Sequence[str]:
        """Kernels that are replaced by XLA."""
        return self.settings.get("without_kernels") or ()

    def without(self, kernels: Sequence[str]) -> "ReportOptions":
        """Returns the options with more kernels replaced by XLA."""
        names = dict.fromkeys((*self.without_kernels, *kernels))
        return replace(self, settings={**self.settings, "without_kernels": tuple(names)})

    def load(self) -> Settings:
        """Returns all settings.

        Raises:
          SettingsError: A setting is wrong.
        """
        return load_settings({"model": self.model, **self.settings})


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Options of `roost convert`."""

    model: Annotated[str, typer.Argument(help=MODEL_HELP, show_default=False, metavar="SRC")]
    destination: Annotated[Path, typer.Argument(metavar="DST")]
    """New folder."""
    dtype: Annotated[_Dtype | None, typer.Option(metavar="DTYPE", show_default="each tensor's own")] = None
    """float32 or bfloat16."""
    calibrate: Annotated[str | None, typer.Option(show_default="none", metavar="FILE")] = None
    """With --quantize int4: text file for whose activations the matrices are quantised, or `default` for a text that
    comes with Roost. Answers differ less from the original's; takes minutes to hours.
    """
    settings: Mapping[str, Any] = field(default_factory=dict)


class Workload(StrEnum):
    """Workloads of the engine benchmark."""

    prefill = "prefill"
    decode = "decode"
    mixed = "mixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBenchOptions:
    """Options of `roost bench engine`."""

    workload: Annotated[list[Workload] | None, typer.Option(show_default="all three", metavar="WORKLOAD")] = None
    """prefill, decode or mixed; may be given several times."""
    concurrency: Annotated[int | None, typer.Option(min=1, show_default="the slots")] = None
    """Requests that run at the same time."""
    input_len: Annotated[int, typer.Option(min=1)] = 512
    """Tokens of each prompt."""
    output_len: Annotated[int, typer.Option(min=1)] = 128
    """Tokens to generate for each."""
    num_prompts: Annotated[int | None, typer.Option(min=1, show_default="twice the concurrency")] = None
    """Requests of a run of prefill or mixed; decode has one per slot in use."""
    repeat: Annotated[int, typer.Option(min=1)] = 3
    """Runs of each workload; the table has medians."""
    json: JsonFile = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeBenchOptions:
    """Options of `roost bench serve`."""

    limits: Annotated[list[str] | None, typer.Argument(metavar="NAME:MS", hidden=True)] = None
    """Further limits of --goodput."""
    url: Annotated[str, typer.Option()] = "http://127.0.0.1:8000"
    """The server, with or without /v1."""
    model: Annotated[str | None, typer.Option(show_default="the first that the server lists", metavar="NAME")] = None
    """Id of the model."""
    endpoint: Annotated[Literal["completions", "chat"], typer.Option()] = "completions"
    """API to use. completions sends token ids, chat sends words."""
    request_rate: Annotated[float | None, typer.Option(min=0.001, show_default="all at once", metavar="R")] = None
    """Requests per second, as a Poisson process, whether or not others have ended."""
    concurrency: Annotated[int | None, typer.Option(min=1, show_default=False)] = None
    """Instead of a rate: number of open requests."""
    num_prompts: Annotated[int, typer.Option(min=1)] = 100
    """Requests to measure."""
    input_len: Annotated[str, typer.Option(metavar="N|LOW:HIGH")] = "512"
    """Tokens (or words) of a prompt: 512, or 100:900 for any between."""
    output_len: Annotated[str, typer.Option(metavar="N|LOW:HIGH")] = "128"
    """max_tokens, in the same way."""
    vocab_size: Annotated[int, typer.Option(min=2)] = 256
    """Bound above all token ids of prompts."""
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos")] = False
    """Request the full length; Roost, vLLM and SGLang support it."""
    temperature: Annotated[float, typer.Option(min=0, max=2)] = 0.0
    """0 always takes the most likely token."""
    api_key: Annotated[str | None, typer.Option(metavar="KEY", show_default=False)] = None
    """Sent as a bearer token."""
    warmup: Annotated[int, typer.Option(min=0)] = 1
    """Requests before the measurement, one after the other."""
    timeout: Annotated[float, typer.Option(min=0.001)] = 600.0
    """Seconds that a request may take."""
    goodput: Annotated[list[str] | None, typer.Option(metavar="'NAME:MS ...'", show_default=False)] = None
    """Also count the requests within limits in ms: ttft:500 itl:50 tpot:50 e2e:5000."""
    seed: Annotated[int, typer.Option()] = 0
    """Seed of prompts, lengths and arrival times."""
    json: JsonFile = None
