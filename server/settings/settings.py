"""The declaration of every setting."""

from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, PrivateAttr, SecretStr, create_model, field_validator, model_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from ..database.address import StoreAddress
from ..features.index import modules_of
from .fields import (
    AUTO,
    LOCAL_FOLDER,
    OFF,
    Group,
    Mesh,
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
from .sources import PREFIX, Labels, config_path, environment_values, read_file

MODEL_CHOICES: Final = (
    "a directory (safetensors with config.json, or an official Flax checkpoint), owner/name[@revision] on Hugging "
    "Face, kaggle:google/recurrentgemma/flax/2b-it, gs:// or s3://bucket/path, random:2b, random:9b, "
    "random:CONFIG.json, or demo"
)
"""Values that MODEL may have, for help texts and errors."""


_OWN_PATHS: Final = frozenset({"debug", "health", "metrics", "v1"})
"""First parts of paths with access control. A prefix must not begin with them."""


class Settings(BaseSettings):
    """Settings of `roost serve` without features' settings, which `all_settings` adds.

    Each field is a flag (`--max-queue`), an environment variable (`ROOST_MAX_QUEUE`) and a key of the config file
    (`max_queue`). A flag overrides a variable, which overrides the file, which overrides the default. A field whose
    name is also a field of `EngineConfig` sets that field.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    model: Annotated[str, Option(Group.MODEL, f"A{MODEL_CHOICES[1:]}.", "MODEL")] = "demo"
    config: Annotated[
        Path | None, Option(Group.COMMON, "TOML file with any of these settings, such as max_queue = 64.", "FILE")
    ] = None
    served_model_name: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        Option(Group.MODEL, "The model's id for clients.", "ID", default="the directory's name"),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option(Group.MODEL, "auto (the checkpoint's own), float32 or bfloat16.", "DTYPE"),
    ] = "auto"
    quantize: Annotated[
        Literal["int8", "int4"] | None,
        Option(
            Group.COMMON,
            "int8: weights take half the memory, and steps less time; answers are almost the same. int4, on CPUs: "
            "matrices take half of int8's memory, but answers differ more, and native kernels alone are quicker.",
            "FORMAT",
        ),
    ] = None
    kv_dtype: Annotated[
        Literal["int8"] | None,
        Option(
            Group.MODEL,
            "int8: keys and values of the attention window take half the memory; answers are almost the same.",
            "int8",
            default="as activations",
        ),
    ] = None
    speculative_config: Annotated[
        SpeculativeConfig,
        Option(
            Group.MODEL,
            'Speculative decoding on CPUs, spelt as by vLLM, such as {"method": "ngram", "num_speculative_tokens": 7}; '
            "copies of earlier text take fewer steps, and tokens stay the same.",
            "JSON|null",
            default="null",
        ),
    ] = None
    seed: Annotated[int, Field(ge=0, lt=2**32), Option(Group.MODEL, "Seed of random weights.")] = 0
    without_kernels: Annotated[
        Words,
        Option(
            Group.MODEL,
            "Kernels to replace by XLA, because roost report found them wrong on this device.",
            "NAME",
            default="none",
        ),
    ] = ()
    lora: Annotated[
        Words,
        Option(
            Group.MODEL,
            "LoRA adapter by PEFT to merge into the weights: a directory, or a repository on Hugging Face.",
            "ADAPTER[=SCALE]",
            default="none",
        ),
    ] = ()
    max_tokens_limit: Annotated[
        PositiveInt | None, Option(Group.MODEL, "Maximum number of tokens that a request may generate.")
    ] = None
    max_prompt_tokens: Annotated[PositiveInt | None, Option(Group.MODEL, "Maximum number of tokens of a prompt.")] = (
        None
    )
    strict: Annotated[bool, Option(Group.MODEL, "Refuse requests with unknown fields.")] = False

    host: Annotated[str, Option(Group.COMMON, "Address to listen on; 0.0.0.0 is all.", "ADDRESS")] = "127.0.0.1"
    port: Annotated[Port, Option(Group.COMMON, "Port to listen on; 0 takes a free one.")] = 8000
    uds: Annotated[
        Path | None,
        Option(Group.HTTP, "Unix socket to listen on instead of --host and --port, for a local proxy.", "PATH"),
    ] = None
    root_path: Annotated[
        Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)+$")] | None,
        Option(
            Group.HTTP, "Path prefix under which a proxy offers this server; the proxy may remove it or not.", "PATH"
        ),
    ] = None
    forwarded_allow_ips: Annotated[
        Words,
        Option(
            Group.HTTP,
            "Proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted: addresses, networks, or *.",
            "ADDRESS",
            default="none",
        ),
    ] = ()
    admin_port: Annotated[Port | None, Option(Group.HTTP, "Serve metrics and /debug on this port instead.")] = None
    allow_origin: Annotated[
        Words,
        Option(Group.HTTP, "Web pages that may use this server, such as https://example.org, or *.", "ORIGIN"),
    ] = ()
    max_body_bytes: Annotated[int, Field(ge=1024), Option(Group.HTTP, "Maximum size of a request's body.")] = 4 * 2**20

    max_connections: Annotated[
        PositiveInt | None,
        AUTO,
        Option(
            Group.HTTP,
            "Connections with a request at the same time; idle ones are closed to make room for new ones.",
            "auto|N",
            default="slots + --max-queue + 4096",
        ),
    ] = None

    ssl_certfile: Annotated[
        Path | None, Option(Group.SECURITY, "Certificate chain in PEM, to serve HTTPS.", "FILE")
    ] = None
    ssl_keyfile: Annotated[
        Path | None, Option(Group.SECURITY, "Private key, unless the certificate's file has it.", "FILE")
    ] = None
    api_key: Annotated[
        Secrets | None,
        Option(
            Group.COMMON,
            "Require this key, or one of several. Other users of this machine can read a command line, but not "
            "ROOST_API_KEY.",
            "[NAME:]KEY",
        ),
    ] = None
    api_key_file: Annotated[Path | None, Option(Group.SECURITY, "File with API keys, one per line.", "FILE")] = None
    admin_key: Annotated[
        Secrets | None,
        Option(Group.SECURITY, "Offer /debug to clients with this key; better in ROOST_ADMIN_KEY.", "KEY"),
    ] = None
    state_key: Annotated[
        Annotated[SecretStr, Field(min_length=16)] | None,
        Option(
            Group.SECURITY,
            "Sign states that are saved as files, and accept no others; better in ROOST_STATE_KEY.",
            "KEY",
        ),
    ] = None
    cache_salt_by_key: Annotated[
        bool, Option(Group.SECURITY, "Never share the prefix cache between different API keys.")
    ] = False

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option(Group.LOGS, "Minimum level of log lines: debug, info, warning or error.", "LEVEL"),
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"],
        Option(Group.LOGS, "Format of log lines; json writes an object per line.", "text|json"),
    ] = "text"
    access_log: Annotated[bool, Option(Group.LOGS, "Log a line for each request.", "on|off", default="on")] = True
    metrics_compat: Annotated[
        Literal["vllm"] | None, Option(Group.LOGS, "Report metrics under vLLM's names too.", "vllm")
    ] = None
    otlp_traces_endpoint: Annotated[
        Annotated[str, Field(pattern="^https?://")] | None,
        Option(Group.LOGS, "Collector of OpenTelemetry spans; the path is /v1/traces.", "URL"),
    ] = None

    slots: Annotated[
        PositiveInt | None,
        AUTO,
        Option(
            Group.COMMON,
            "Requests that run at the same time: a number, or auto for what memory allows.",
            "auto|N",
            default="auto",
        ),
    ] = None
    reserved_slots: Annotated[
        NonNegativeInt | None,
        AUTO,
        Option(
            Group.CAPACITY,
            "Slots kept free for API keys without running requests.",
            "auto|N",
            default="1 with several keys, else 0",
        ),
    ] = None
    max_queue: Annotated[PositiveInt, Option(Group.CAPACITY, "Maximum number of requests that wait for a slot.")] = 256
    max_queue_tokens: Annotated[
        PositiveInt | None,
        Option(Group.CAPACITY, "Maximum total number of prompt tokens of waiting requests.", default="no limit"),
    ] = None
    prefill_chunk: Annotated[PositiveInt, Option(Group.CAPACITY, "Maximum number of prompt tokens in one step.")] = 512
    itl_target_ms: Annotated[
        NonNegativeFloat | None,
        AUTO,
        Option(
            Group.CAPACITY,
            "Target for milliseconds between two tokens while prompts are prefilled; 0 for throughput.",
            "auto|MS",
            default="2.9 decode steps",
        ),
    ] = None

    mesh: Annotated[
        Mesh,
        Option(
            Group.DEVICES,
            "Devices that share the slots (data) and the model's weights (model).",
            "auto|data=N,model=M",
        ),
    ] = "data=1,model=1"
    simulate: Annotated[
        str | None,
        Option(
            Group.DEVICES,
            "Simulate the timing of this device without running a model, with options such as step_ms, "
            "prefill_tokens_per_s, efficiency, jitter, output_tokens or fault; for load tests.",
            "DEVICE[,OPTION=VALUE...]",
        ),
    ] = None
    coordinator: Annotated[
        Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$")] | None,
        Option(Group.DEVICES, "Address of the first of several hosts.", "HOST:PORT"),
    ] = None
    num_hosts: Annotated[PositiveInt, Option(Group.DEVICES, "Number of hosts that serve together.")] = 1
    host_index: Annotated[NonNegativeInt, Option(Group.DEVICES, "Index of this host, from 0.")] = 0

    state_cache_gib: Annotated[
        NonNegativeFloat | None,
        AUTO,
        Option(
            Group.CACHE,
            "Host memory for the prefix cache, in GiB; 0 turns it off.",
            "auto|GIB",
            default="an eighth of free memory",
        ),
    ] = None
    state_cache_inexact: Annotated[
        bool,
        Option(Group.CACHE, "Also cache the states of generated text, which are not exact bit for bit."),
    ] = False
    state_cache_dir: Annotated[
        Literal["auto", "off"] | Path,
        LOCAL_FOLDER,
        Option(
            Group.CACHE,
            "Folder in which the prefix cache survives a restart; off keeps none.",
            "DIR|off",
            default="beside the file of an SQLite --store",
        ),
    ] = "auto"
    state_cache_dir_gib: Annotated[PositiveFloat, Option(Group.CACHE, "Maximum size of that folder, in GiB.")] = 16.0
    compile_cache: Annotated[
        Literal["auto", "off"] | Path,
        LOCAL_FOLDER,
        Option(
            Group.CACHE,
            "Folder for compiled programs, which make later starts faster; off keeps none.",
            "DIR|off",
            default="the user's cache folder",
        ),
    ] = "auto"

    store: Annotated[
        Store,
        Option(
            Group.COMMON,
            "Where responses, conversations, files and batches are kept: memory:, sqlite:///FILE for one machine, or "
            "postgresql://USER:PASSWORD@HOST/DB for several. They then survive the server. A password is better in "
            "ROOST_STORE.",
            "URL",
            default="memory:",
        ),
    ] = SecretStr("memory:")
    store_days: Annotated[
        PositiveFloat, Option(Group.STORE, "Days after which a response in a database is deleted.", "DAYS")
    ] = 30.0

    request_timeout: Annotated[
        PositiveFloat | None, OFF, Option(Group.SHUTDOWN, "Seconds that a request may take.", "SECONDS|off")
    ] = 3600.0
    stall_timeout: Annotated[
        PositiveFloat,
        Option(
            Group.SHUTDOWN, "Seconds after which a client that does not read its response is disconnected.", "SECONDS"
        ),
    ] = 60.0
    step_timeout: Annotated[
        PositiveFloat,
        Option(
            Group.SHUTDOWN,
            "Seconds after which a device step is considered stuck, and the process ends.",
            "SECONDS",
        ),
    ] = 300.0
    drain_timeout: Annotated[
        NonNegativeFloat,
        Option(Group.SHUTDOWN, "Seconds that open requests may take after SIGTERM or Ctrl-C.", "SECONDS"),
    ] = 10.0
    drain_lag: Annotated[
        NonNegativeFloat,
        Option(Group.SHUTDOWN, "Seconds after SIGTERM in which new requests are still accepted.", "SECONDS"),
    ] = 2.0

    _labels: Labels = PrivateAttr(default_factory=Labels)
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each environment variable that was ignored."""
        return self._warnings

    def remember_sources(self, labels: Labels, warnings: tuple[str, ...]) -> None:
        """Records the sources of the values, and the ignored variables."""
        self._labels, self._warnings = labels, warnings

    def rename(self, text: str) -> str:
        """Returns an error about settings, with their names as they appear in the sources of their values."""
        return self._labels.rename(text, type(self).model_fields)

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
        return self

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str | None) -> str | None:
        if value is not None and value.split("/")[1] in _OWN_PATHS:
            raise ValueError(f"must not begin with a path of the server's own: {', '.join(sorted(_OWN_PATHS))}")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Adds the config file, which a flag or a variable names, as the source of lowest precedence."""
        variables = environment_values(env_settings(), cls.model_fields)
        file = read_file(config_path(init_settings()), cls.model_fields)
        return init_settings, InitSettingsSource(settings_cls, variables), InitSettingsSource(settings_cls, file)


@cache
def all_settings() -> type[Settings]:
    """Returns the settings of `roost serve`: the core's settings, and those in the modules `settings` of features."""
    kinds: list[type[Settings]] = [module.SETTINGS for module in modules_of("settings")]
    return create_model("AllSettings", __base__=(*reversed(kinds), Settings))
