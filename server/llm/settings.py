"""Settings of a model in this process: all of `roost serve` except HTTP's, also from keywords of vLLM."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypedDict

from ...engine import ConfigError, Quantization
from ..settings import Settings, SettingsError, foreign_name_hint, is_neutral, load_settings


class ModelSettings(TypedDict, total=False):
    """Settings under the names of `roost serve`'s flags, with underscores; the settings reference describes them.

    A setting that is left out is read from its environment variable (`ROOST_SLOTS`), then from the config file, as by
    `roost serve`.
    """

    config: str | Path | None
    served_model_name: str | None
    dtype: Literal["auto", "float32", "bfloat16"]
    quantize: Quantization | None
    kv_dtype: Literal["int8"] | None
    speculative_config: Mapping[str, Any] | str | None
    seed: int
    without_kernels: Sequence[str]
    lora: str | Sequence[str]
    max_tokens_limit: int | None
    max_prompt_tokens: int | None
    slots: int | None
    max_queue: int
    prefill_chunk: int
    itl_target_ms: float | None
    mesh: str
    state_cache_gib: float | None
    state_cache_inexact: bool
    state_cache_dir: str | Path
    state_cache_dir_gib: float
    compile_cache: str | Path
    request_timeout: float | None
    state_key: str


_DEFAULTS: Final[Mapping[str, Any]] = {"max_queue": 4096, "request_timeout": None}
"""Settings whose defaults differ from HTTP's: a single program sends all requests and waits for them."""


def load_model_settings(
    model: str, given: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> Settings:
    """Returns the settings of a model.

    Args:
      model: The model, as for `roost serve`.
      given: Settings from the caller, and keywords of vLLM that have no effect here.
      defaults: Further defaults that differ from HTTP's, of settings that neither the caller, nor the environment, nor
        the config file sets.

    Raises:
      TypeError: A setting's name is unknown.
      ConfigError: A value cannot be used.
    """
    given = {name: value for name, value in given.items() if not is_vllm_neutral(name, value)}
    for name in given:
        if name not in ModelSettings.__annotations__:
            raise TypeError(unknown_setting(name))
    try:
        settings = load_settings({**given, "model": model}, flag_label=str)
    except SettingsError as error:
        raise ConfigError(str(error)) from None
    defaults = {**_DEFAULTS, **defaults}
    unset = {name: value for name, value in defaults.items() if name not in settings.model_fields_set}
    return settings.model_copy(update=unset)


def is_vllm_neutral(name: str, value: Any) -> bool:
    """Returns whether a keyword of vLLM has no effect here, so that scripts work unchanged."""
    return name not in ModelSettings.__annotations__ and is_neutral(name, value)


def unknown_setting(name: str) -> str:
    """Returns the error message about an unknown setting."""
    if (hint := foreign_name_hint(name)) is not None:
        return hint
    guess = next(iter(difflib.get_close_matches(name, sorted(ModelSettings.__annotations__), 1)), None)
    return f"there is no setting {name!r}" + ("" if guess is None else f"; did you mean {guess}?")


_RENAMED: Final = {
    "kv_cache_dtype": "kv_dtype",
    "max_num_batched_tokens": "prefill_chunk",
    "max_num_seqs": "slots",
    "quantization": "quantize",
}
"""Settings of Roost by vLLM's names, where their values are the same."""

_AXES: Final = {"data_parallel_size": "data", "tensor_parallel_size": "model"}
"""Axes of the mesh by vLLM's names of their sizes."""

_Settings: Final = make_dataclass(
    "_Settings", [("model", str, "demo"), *((name, Any, None) for name in ModelSettings.__annotations__)]
)


class EngineArgs(_Settings):  # type: ignore[misc, valid-type]  # the fields of `ModelSettings`
    """Settings of a model from vLLM's keywords: `LLM(**dataclasses.asdict(EngineArgs(model="demo", max_num_seqs=8)))`.

    Attributes are the settings of Roost; a value of None selects the setting's default.

    Args:
      model: The model, as for `LLM`.
      given: Keywords of vLLM's class of this name, or settings of Roost.

    Raises:
      TypeError: A keyword is unknown, or its value is not supported.
    """

    def __init__(self, model: str = "demo", **given: Any) -> None:
        super().__init__(model, **_settings(given))


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sizes = {axis: given.get(name) or 1 for name, axis in _AXES.items()}
    if any(size != 1 for size in sizes.values()):
        found["mesh"] = ",".join(f"{axis}={size}" for axis, size in sizes.items())
    for name, value in given.items():
        if name in _AXES or is_vllm_neutral(name, value):
            continue
        if name == "max_model_len":  # vLLM's limit of prompt and output together
            found |= {"max_prompt_tokens": value, "max_tokens_limit": value}
        elif (own := _RENAMED.get(name, name)) in ModelSettings.__annotations__:
            found[own] = value
        else:
            raise TypeError(unknown_setting(name))
    return found
