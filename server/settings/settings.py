"""The declaration of every setting."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, create_model, model_validator

from ..database.address import StoreAddress
from ..features.index import modules_of
from .fields import (
    AUTO,
    LOCAL_FOLDER,
    OFF,
    Group,
    Mesh,
    Names,
    NonNegativeFloat,
    NonNegativeInt,
    Option,
    Port,
    PositiveFloat,
    PositiveInt,
    Secrets,
    SpeculativeConfig,
    Store,
    Words,
)
from .sources import rename

MODEL_CHOICES: Final = (
    "a directory (safetensors with config.json, or an official Flax checkpoint), owner/name[@revision] on Hugging "
    "Face, kaggle:google/recurrentgemma/flax/2b-it, gs:// or s3://bucket/path, random:2b, random:9b, "
    "random:CONFIG.json, or demo"
)
"""Values that MODEL may have, for help texts and errors."""


_OWN_PATHS: Final = frozenset({"debug", "health", "metrics", "v1"})
"""First parts of paths with access control. A prefix must not begin with them."""


class Settings(BaseModel):
    """Settings of `roost serve` without features' settings, which `all_settings` adds.

    Each field is a flag (`--max-queue`), an environment variable (`ROOST_MAX_QUEUE`) and a key of the config file
    (`max_queue`). A flag overrides a variable, which overrides the file, which overrides the default. A field whose
    name is also a field of `EngineConfig` sets that field. The text below a field is its description in `--help`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: Annotated[str, Field(description=f"A{MODEL_CHOICES[1:]}."), Option(Group.MODEL, "MODEL")] = "demo"
    config: Annotated[Path | None, Option(Group.COMMON, "FILE")] = None
    """TOML file with any of these settings, such as max_queue = 64."""
    served_model_name: Annotated[Names | None, Option(Group.MODEL, "ID", default="the directory's name")] = None
    """The model's id for clients. Requests may use any of several; responses have the first."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], Option(Group.MODEL, "DTYPE")] = "auto"
    """auto (the checkpoint's own), float32 or bfloat16."""
    quantize: Annotated[Literal["int8", "int4"] | None, Option(Group.COMMON, "FORMAT")] = None
    """int8: weights take half the memory, and steps less time; answers are almost the same. int4, on CPUs: matrices
    take half of int8's memory, but answers differ more, and native kernels alone are quicker.
    """
    kv_dtype: Annotated[Literal["int8"] | None, Option(Group.MODEL, "int8", default="as activations")] = None
    """int8: keys and values of the attention window take half the memory; answers are almost the same."""
    speculative_config: Annotated[SpeculativeConfig, Option(Group.MODEL, "JSON|null", default="null")] = None
    """Speculative decoding on CPUs, spelt as by vLLM, such as {"method": "ngram", "num_speculative_tokens": 7}; copies
    of earlier text take fewer steps, and tokens stay the same.
    """
    seed: Annotated[int, Field(ge=0, lt=2**32), Option(Group.MODEL)] = 0
    """Seed of random weights."""
    without_kernels: Annotated[Words, Option(Group.MODEL, "NAME", default="none")] = ()
    """Kernels to replace by XLA, because roost report found them wrong on this device."""
    lora: Annotated[Words, Option(Group.MODEL, "ADAPTER[=SCALE]", default="none")] = ()
    """LoRA adapter by PEFT to merge into the weights: a directory, or a repository on Hugging Face."""
    max_tokens_limit: Annotated[PositiveInt | None, Option(Group.MODEL)] = None
    """Maximum number of tokens that a request may generate."""
    max_prompt_tokens: Annotated[PositiveInt | None, Option(Group.MODEL)] = None
    """Maximum number of tokens of a prompt."""
    strict: Annotated[bool, Option(Group.MODEL)] = False
    """Refuse requests with unknown fields."""

    host: Annotated[str, Option(Group.COMMON, "ADDRESS")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is all."""
    port: Annotated[Port, Option(Group.COMMON)] = 8000
    """Port to listen on; 0 takes a free one."""
    uds: Annotated[Path | None, Option(Group.HTTP, "PATH")] = None
    """Unix socket to listen on instead of --host and --port, for a local proxy."""
    root_path: Annotated[
        Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)+$")] | None, Option(Group.HTTP, "PATH")
    ] = None
    """Path prefix under which a proxy offers this server; the proxy may remove it or not."""
    forwarded_allow_ips: Annotated[Words, Option(Group.HTTP, "ADDRESS", default="none")] = ()
    """Proxies whose X-Forwarded-For, -Proto and -Host are trusted: addresses, networks, or *."""
    admin_port: Annotated[Port | None, Option(Group.HTTP)] = None
    """Serve metrics and /debug on this port instead."""
    allow_origin: Annotated[Words, Option(Group.HTTP, "ORIGIN")] = ()
    """Web pages that may use this server, such as https://example.org, chrome-extension://*, or * for all."""
    allow_host: Annotated[Words, Option(Group.HTTP, "NAME")] = ()
    """Names, besides this machine's own, under which clients reach a server on loopback, such as a proxy's; or *."""
    max_body_bytes: Annotated[int, Field(ge=1024), Option(Group.HTTP)] = 4 * 2**20
    """Maximum size of a request's body."""

    max_connections: Annotated[
        PositiveInt | None, AUTO, Option(Group.HTTP, "auto|N", default="slots + --max-queue + 4096")
    ] = None
    """Connections with a request at the same time; idle ones are closed to make room for new ones."""

    ssl_certfile: Annotated[Path | None, Option(Group.SECURITY, "FILE")] = None
    """Certificate chain in PEM, to serve HTTPS."""
    ssl_keyfile: Annotated[Path | None, Option(Group.SECURITY, "FILE")] = None
    """Private key, unless the certificate's file has it."""
    api_key: Annotated[Secrets | None, Option(Group.COMMON, "[NAME:]KEY")] = None
    """Require this key, or one of several. Other users of this machine can read a command line, but not ROOST_API_KEY.
    """
    api_key_file: Annotated[Path | None, Option(Group.SECURITY, "FILE")] = None
    """File with API keys, one per line."""
    admin_key: Annotated[Secrets | None, Option(Group.SECURITY, "KEY")] = None
    """Offer /debug to clients with this key; better in ROOST_ADMIN_KEY."""
    state_key: Annotated[Annotated[SecretStr, Field(min_length=16)] | None, Option(Group.SECURITY, "KEY")] = None
    """Sign states that are saved as files, and accept no others; better in ROOST_STATE_KEY."""
    cache_salt_by_key: Annotated[bool, Option(Group.SECURITY)] = False
    """Never share the prefix cache between different API keys."""

    log_level: Annotated[Literal["debug", "info", "warning", "error"], Option(Group.LOGS, "LEVEL")] = "info"
    """Minimum level of log lines: debug, info, warning or error."""
    log_format: Annotated[Literal["text", "json"], Option(Group.LOGS, "text|json")] = "text"
    """Format of log lines; json writes an object per line."""
    access_log: Annotated[bool, Option(Group.LOGS, "on|off", default="on")] = True
    """Log a line for each request."""
    metrics_compat: Annotated[Literal["vllm"] | None, Option(Group.LOGS, "vllm")] = None
    """Report metrics under vLLM's names too."""
    otlp_traces_endpoint: Annotated[Annotated[str, Field(pattern="^https?://")] | None, Option(Group.LOGS, "URL")] = (
        None
    )
    """Collector of OpenTelemetry spans; the path is /v1/traces."""

    slots: Annotated[PositiveInt | None, AUTO, Option(Group.COMMON, "auto|N", default="auto")] = None
    """Requests that run at the same time: a number, or auto for what memory allows."""
    reserved_slots: Annotated[
        NonNegativeInt | None, AUTO, Option(Group.CAPACITY, "auto|N", default="1 with several keys, else 0")
    ] = None
    """Slots kept free for API keys without running requests."""
    max_queue: Annotated[PositiveInt, Option(Group.CAPACITY)] = 256
    """Maximum number of requests that wait for a slot."""
    max_queue_tokens: Annotated[PositiveInt | None, Option(Group.CAPACITY, default="no limit")] = None
    """Maximum total number of prompt tokens of waiting requests."""
    prefill_chunk: Annotated[PositiveInt, Option(Group.CAPACITY)] = 512
    """Maximum number of prompt tokens in one step."""
    itl_target_ms: Annotated[
        NonNegativeFloat | None, AUTO, Option(Group.CAPACITY, "auto|MS", default="2.9 decode steps")
    ] = None
    """Target for milliseconds between two tokens while prompts are prefilled; 0 for throughput."""

    mesh: Annotated[Mesh, Option(Group.DEVICES, "auto|data=N,model=M")] = "data=1,model=1"
    """Devices that share the slots (data) and the model's weights (model)."""
    simulate: Annotated[str | None, Option(Group.DEVICES, "DEVICE[,OPTION=VALUE...]")] = None
    """Simulate the timing of this device without running a model, with options such as step_ms, prefill_tokens_per_s,
    efficiency, jitter, output_tokens or fault; for load tests.
    """
    coordinator: Annotated[
        Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$")] | None, Option(Group.DEVICES, "HOST:PORT")
    ] = None
    """Address of the first of several hosts."""
    num_hosts: Annotated[PositiveInt, Option(Group.DEVICES)] = 1
    """Number of hosts that serve together."""
    host_index: Annotated[NonNegativeInt, Option(Group.DEVICES)] = 0
    """Index of this host, from 0."""

    state_cache_gib: Annotated[
        NonNegativeFloat | None, AUTO, Option(Group.CACHE, "auto|GIB", default="an eighth of free memory")
    ] = None
    """Host memory for the prefix cache, in GiB; 0 turns it off."""
    state_cache_inexact: Annotated[bool, Option(Group.CACHE)] = False
    """Also cache the states of generated text, which are not exact bit for bit."""
    state_cache_dir: Annotated[
        Literal["auto", "off"] | Path,
        LOCAL_FOLDER,
        Option(Group.CACHE, "DIR|off", default="beside the file of an SQLite --store"),
    ] = "auto"
    """Folder in which the prefix cache survives a restart; off keeps none."""
    state_cache_dir_gib: Annotated[PositiveFloat, Option(Group.CACHE)] = 16.0
    """Maximum size of that folder, in GiB."""
    compile_cache: Annotated[
        Literal["auto", "off"] | Path, LOCAL_FOLDER, Option(Group.CACHE, "DIR|off", default="the user's cache folder")
    ] = "auto"
    """Folder for compiled programs, which make later starts faster; off keeps none."""

    store: Annotated[Store, Option(Group.COMMON, "URL", default="memory:")] = SecretStr("memory:")
    """Where responses, conversations, files and batches are kept: memory:, sqlite:///FILE for one machine, or
    postgresql://USER:PASSWORD@HOST/DB for several. They then survive the server. A password is better in ROOST_STORE.
    """
    store_days: Annotated[PositiveFloat, Option(Group.STORE, "DAYS")] = 30.0
    """Days after which a response in a database is deleted."""

    request_timeout: Annotated[PositiveFloat | None, OFF, Option(Group.SHUTDOWN, "SECONDS|off")] = 3600.0
    """Seconds that a request may take."""
    stall_timeout: Annotated[PositiveFloat, Option(Group.SHUTDOWN, "SECONDS")] = 60.0
    """Seconds after which a client that does not read its response is disconnected."""
    step_timeout: Annotated[PositiveFloat, Option(Group.SHUTDOWN, "SECONDS")] = 300.0
    """Seconds after which a device step is considered stuck, and the process ends."""
    drain_timeout: Annotated[NonNegativeFloat, Option(Group.SHUTDOWN, "SECONDS")] = 10.0
    """Seconds that open requests may take after SIGTERM or Ctrl-C."""
    drain_lag: Annotated[NonNegativeFloat, Option(Group.SHUTDOWN, "SECONDS")] = 2.0
    """Seconds after SIGTERM in which new requests are still accepted."""

    _labels: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _warnings: Sequence[str] = PrivateAttr(default=())

    @property
    def warnings(self) -> Sequence[str]:
        """One line for each environment variable that was ignored."""
        return self._warnings

    def remember_sources(self, labels: Mapping[str, str], warnings: Sequence[str]) -> None:
        """Records the names of the settings in the sources of their values, and the ignored variables."""
        self._labels, self._warnings = labels, warnings

    def rename(self, text: str) -> str:
        """Returns an error about settings, with their names as they appear in the sources of their values."""
        return rename(text, self._labels)

    @property
    def store_address(self) -> StoreAddress:
        """Address of the store."""
        return StoreAddress.parse(self.store.get_secret_value())

    @property
    def retention_s(self) -> float:
        """Seconds after which stored objects are deleted from a database."""
        return self.store_days * 86400.0

    @model_validator(mode="after")
    def _check_related_settings(self) -> "Settings":
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        if self.uds is None and self.admin_port == self.port != 0:
            raise ValueError(f"port and admin_port must differ, and both are {self.port}")
        if (self.coordinator is not None) != (self.num_hosts > 1):
            raise ValueError("several hosts need both coordinator and num_hosts")
        if self.host_index >= self.num_hosts:
            raise ValueError(f"host_index must be less than num_hosts ({self.num_hosts}), not {self.host_index}")
        if self.root_path is not None and self.root_path.split("/")[1] in _OWN_PATHS:
            raise ValueError(f"root_path must not begin with one of {', '.join(sorted(_OWN_PATHS))}")
        return self


@cache
def all_settings() -> type[Settings]:
    """Returns the settings of `roost serve`: the core's settings, and those in the modules `settings` of features."""
    kinds: list[type[Settings]] = [module.SETTINGS for module in modules_of("settings")]
    return create_model("AllSettings", __base__=(*reversed(kinds), Settings))
