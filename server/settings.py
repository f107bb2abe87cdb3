"""Settings of `roost serve`: a flag beats an environment variable, that beats the file, that beats a default."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict


class SettingsError(Exception):
    """A setting cannot be used; the text is one line that names it."""


def _none_if_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _none_if_off(value: Any) -> Any:
    return None if value == "off" else value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Each is a flag (`--max-queue`), a variable (`ROOST_MAX_QUEUE`) and a key of the file (`max_queue`).

    Attributes:
      config: the file itself, in TOML; a flag or a variable only.
      slots: None, written "auto", takes what memory allows.
      max_queue_tokens: None is no limit.
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
    api_key: Annotated[SecretStr, Field(min_length=1)] | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Literal["int8"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    slots: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_none_if_auto)] = None
    max_queue: Annotated[int, Field(ge=1)] = 256
    max_queue_tokens: Annotated[int, Field(ge=1)] | None = None
    prefill_chunk: Annotated[int, Field(ge=1)] = 512
    compile_cache: Literal["auto", "off"] | Path = "auto"
    max_tokens_limit: Annotated[int, Field(ge=1)] | None = None
    strict: bool = False
    request_timeout: Annotated[Seconds | None, BeforeValidator(_none_if_off)] = 3600.0
    drain_timeout: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    drain_lag: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    step_timeout: Seconds = 300.0
    stall_timeout: Seconds = 60.0

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
    name, value = detail["loc"][0], detail["input"]
    rule = str(detail["msg"]).replace("Input should", "must")
    if detail["type"] == "int_parsing":
        rule = "must be a whole number"
    return f"{name}: {rule}" if name == "api_key" else f"{name}: {rule}, not {value!r}"
