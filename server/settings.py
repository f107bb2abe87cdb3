"""Settings of `roost serve`: a flag beats an environment variable, that beats the file, that beats a default."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)


class SettingsError(Exception):
    """A setting cannot be used; the text is one line that names it."""


def _none_if_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _none_if_off(value: Any) -> Any:
    return None if value == "off" else value


def _on_this_machine(value: Any) -> Any:
    """A bucket's address would else become a folder by that name, `gs:`, wherever the server was started."""
    if re.match(r"[a-z][a-z0-9]+:/", str(value)):
        raise ValueError("must be a folder; mount the bucket, as by GCS FUSE, and name the folder it is mounted on")
    return value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _split(value: Any) -> Any:
    """Variables hold lists with commas or spaces between; none of ours has one within."""
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """A variable that is there but empty is a secret that got lost, and must not open the doors."""
    if not value:
        raise ValueError("must not be empty")
    return value


def mesh_sizes(value: str) -> tuple[int, int] | None:
    """How many devices share the slots, and how many the model; None for "auto".

    Raises:
      ValueError: it is written in another way.
    """
    if value == "auto":
        return None
    sizes = {"data": 1, "model": 1}
    for part in value.split(","):
        name, _, size = part.partition("=")
        if name.strip() not in sizes or not size.strip().isdecimal() or not 1 <= int(size) <= _MOST_DEVICES:
            raise ValueError('must be auto, or like "data=2,model=4"')
        sizes[name.strip()] = int(size)
    return sizes["data"], sizes["model"]


def _checked_mesh(value: str) -> str:
    mesh_sizes(value)
    return value


_MOST_DEVICES: Final = 64
"""Along one axis."""

Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), AfterValidator(_not_empty)]
_SECRET_NAMES: Final = ("api_key", "admin_key", "state_key")


class Settings(BaseSettings):
    """Each is a flag (`--max-queue`), a variable (`ROOST_MAX_QUEUE`) and a key of the file (`max_queue`).

    Attributes:
      config: the file itself, in TOML; a flag or a variable only.
      admin_port: where metrics are told instead, besides health; None tells them on the port.
      api_key, admin_key: `KEY` or `NAME:KEY` each.
      api_key_file: with one of these a line.
      ssl_certfile, ssl_keyfile: in PEM; with them all is HTTPS.
      allow_origin: of web pages that may use the API; "*" stands for all.
      metrics_compat: tell metrics by vLLM's names too.
      otlp_traces_endpoint: where spans are sent, over HTTP; None makes none.
      slots: None, written "auto", takes what memory allows.
      mesh: devices that share the model and its slots, such as "data=2,model=4"; "auto" takes all.
      coordinator: "HOST:PORT" of the first of several hosts; the same for all of them.
      num_hosts, host_index: how many they are, and which one this is.
      max_queue_tokens: None is no limit.
      reserved_slots: None, written "auto", is 1 with several API keys, else 0.
      state_cache_gib: None, written "auto", takes an eighth of what is available.
      compile_cache: a folder for compiled programs; "auto" is one of the user's own, "off" keeps none.
      request_timeout: of any request, in seconds; None, written "off", is no limit.
      drain_timeout, drain_lag: seconds after SIGTERM until the last requests are ended, and until new ones are refused.
      step_timeout: seconds after which a device step is taken for stuck.
      stall_timeout: seconds after which a client that reads nothing is dropped.
    """

    model_config = SettingsConfigDict(env_prefix="ROOST_", extra="forbid", frozen=True)

    config: Path | None = None
    model: str = "demo"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    served_model_name: Annotated[str, Field(min_length=1)] | None = None
    admin_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    api_key: Secrets | None = None
    api_key_file: Path | None = None
    admin_key: Secrets | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    allow_origin: Words = ()
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 2**20
    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    metrics_compat: Literal["vllm"] | None = None
    otlp_traces_endpoint: Annotated[str, Field(pattern="^https?://")] | None = None
    log_format: Literal["text", "json"] = "text"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["int8"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    slots: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_none_if_auto)] = None
    mesh: Annotated[str, AfterValidator(_checked_mesh)] = "data=1,model=1"
    coordinator: Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$")] | None = None
    num_hosts: Annotated[int, Field(ge=1)] = 1
    host_index: Annotated[int, Field(ge=0)] = 0
    max_queue: Annotated[int, Field(ge=1)] = 256
    max_queue_tokens: Annotated[int, Field(ge=1)] | None = None
    reserved_slots: Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_none_if_auto)] = None
    prefill_chunk: Annotated[int, Field(ge=1)] = 512
    state_cache_gib: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None, BeforeValidator(_none_if_auto)
    ] = None
    state_cache_inexact: bool = False
    state_cache_dir: Annotated[Path | None, BeforeValidator(_on_this_machine)] = None
    state_cache_dir_gib: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 16.0
    state_key: Annotated[SecretStr, Field(min_length=16)] | None = None
    cache_salt_by_key: bool = False
    compile_cache: Annotated[Literal["auto", "off"] | Path, BeforeValidator(_on_this_machine)] = "auto"
    max_tokens_limit: Annotated[int, Field(ge=1)] | None = None
    strict: bool = False
    request_timeout: Annotated[Seconds | None, BeforeValidator(_none_if_off)] = 3600.0
    drain_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    drain_lag: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    step_timeout: Seconds = 300.0
    stall_timeout: Seconds = 60.0

    @model_validator(mode="after")
    def _has_whole_pairs(self) -> "Settings":
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        if (self.coordinator is not None) != (self.num_hosts > 1):
            raise ValueError("several hosts need both coordinator and num_hosts")
        if self.host_index >= self.num_hosts:
            raise ValueError(f"host_index must be less than num_hosts ({self.num_hosts}), not {self.host_index}")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Puts the file, whose name only a flag or a variable tells, behind these two."""
        path = init_settings().get("config") or env_settings().get("config")
        file = _read_file(Path(path)) if path else {}
        return init_settings, env_settings, InitSettingsSource(settings_cls, file)


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Gathers the settings from all sources.

    Args:
      flags: those that were given.

    Raises:
      SettingsError: a value cannot be used, or the file is missing, broken or has a key that is no setting.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise SettingsError("; ".join(_line(detail) for detail in error.errors())) from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"config {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SettingsError(f"config {path}: is not valid TOML ({error})") from None
    unknown = sorted(content.keys() - (Settings.model_fields.keys() - {"config"}))
    if unknown:
        raise SettingsError(f"config {path}: unknown setting {', '.join(unknown)}")
    return content


def _line(detail: Mapping[str, Any]) -> str:
    rule = str(detail["msg"]).replace("Input should", "must").removeprefix("Value error, ")
    if not detail["loc"]:
        return rule
    name, value = detail["loc"][0], detail["input"]
    if detail["type"] == "int_parsing":
        rule = "must be a whole number"
    return f"{name}: {rule}" if name in _SECRET_NAMES else f"{name}: {rule}, not {value!r}"
