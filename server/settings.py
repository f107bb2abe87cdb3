"""Settings of `roost serve`: a flag beats an environment variable, that beats the file, that beats a default."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from .setting_names import PREFIX, Labels, read_environment, unknown_keys
from .validation_errors import describe


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
            raise ValueError("must be auto, or like data=2,model=4")
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
      log_level: the least level of log lines.
      access_log: log a line for each request.
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

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

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
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = True
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

    _labels: Labels = PrivateAttr(default_factory=Labels)
    _warnings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Environment variables that were ignored: one line each."""
        return self._warnings

    def label(self, name: str) -> str:
        """Returns a setting's name as it was written where its value comes from, such as `--slots`."""
        return self._labels.label(name)

    def rename(self, text: str) -> str:
        """Returns an error about settings with their names as they were written where their values come from."""
        return self._labels.rename(text, type(self).model_fields)

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
        flags, variables = init_settings(), _from_environment(env_settings())
        path = flags.get("config") or variables.get("config")
        file = _read_file(Path(path)) if path else {}
        return init_settings, InitSettingsSource(settings_cls, variables), InitSettingsSource(settings_cls, file)


def load_settings(flags: Mapping[str, Any]) -> Settings:
    """Gathers the settings from all sources.

    Args:
      flags: those that were given.

    Raises:
      SettingsError: a value cannot be used, the file is missing, broken or has a key that is no setting, or an
        environment variable's name is almost a setting's.
    """
    environment = read_environment(os.environ, Settings.model_fields)
    if environment.mistakes:
        raise SettingsError("; ".join(environment.mistakes))
    try:
        settings = Settings(**flags)
    except ValidationError as error:
        labels = _labels(flags, environment.given)
        lines = {str(detail["loc"][:1]): _line(detail, labels) for detail in reversed(error.errors())}
        raise SettingsError("; ".join(reversed(lines.values()))) from None
    settings._labels = _labels(flags, environment.given)
    settings._warnings = environment.warnings
    return settings


def is_json_wanted(log_format: str | None) -> bool:
    """Whether a flag or a variable asks for lines of JSON; of errors that come before all settings are known."""
    return "json" in (log_format, os.environ.get(f"{PREFIX}LOG_FORMAT"))


def chosen_platforms() -> str:
    """Returns the value of JAX's own variable for the devices to use; empty leaves the choice to JAX."""
    return os.environ.get("JAX_PLATFORMS", "")


def _labels(flags: Mapping[str, Any], variables: frozenset[str]) -> Labels:
    path = flags.get("config") or os.environ.get(f"{PREFIX}CONFIG")
    in_file = _read_file(Path(path)).keys() if path else ()
    return Labels(frozenset(flags), variables, None if path is None else str(path), frozenset(in_file))


def _from_environment(values: Mapping[str, Any]) -> dict[str, Any]:
    """Drops addresses that Kubernetes sets for a Service named roost."""
    ignored = read_environment(os.environ, Settings.model_fields).ignored
    return {name: value for name, value in values.items() if name not in ignored}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"config {path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise SettingsError(f"config {path}: is not valid TOML ({error})") from None
    if unknown := unknown_keys(content, Settings.model_fields.keys() - {"config"}):
        raise SettingsError(f"config {path}: unknown setting {unknown}")
    return content


def _line(detail: Mapping[str, Any], labels: Labels) -> str:
    """One sentence about a value, which begins with the name that it was given by."""
    rule = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return labels.rename(rule, Settings.model_fields)
    name = str(detail["loc"][0])
    if detail["type"] == "value_error":
        detail = {**detail, "type": "wrong_kind", "msg": rule}
    text = describe({**detail, "input": _plain(detail["input"])}, ())
    return labels.label(name) + (text.partition(", got ")[0] if name in _SECRET_NAMES else text)


def _plain(value: Any) -> Any:
    """The value of a flag or a variable as it was written: numbers without quotes."""
    if isinstance(value, Path):
        return str(value)
    is_number = isinstance(value, str) and re.fullmatch(r"-?\d{1,18}", value)
    return int(value) if is_number else value
