"""Settings of a model in this process: those of `roost serve` that don't concern HTTP."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypedDict

from ...engine import ConfigError
from ..settings import Settings, SettingsError, load_settings


class ModelSettings(TypedDict, total=False):
    """Settings under the names of `roost serve`'s flags, with underscores; the settings reference describes them.

    A setting that is left out is taken from its environment variable (`ROOST_SLOTS`), then from the config file, as by
    `roost serve`.
    """

    config: str | Path | None
    served_model_name: str | None
    dtype: Literal["auto", "float32", "bfloat16"]
    quantize: Literal["int8"] | None
    kv_dtype: Literal["int8"] | None
    seed: int
    max_tokens_limit: int | None
    max_prompt_tokens: int | None
    slots: int | None
    max_queue: int
    prefill_chunk: int
    itl_target_ms: float | None
    mesh: str
    state_cache_gib: float | None
    state_cache_inexact: bool
    state_cache_dir: str | Path | None
    state_cache_dir_gib: float
    compile_cache: str | Path
    request_timeout: float | None
    state_key: str


_VLLM_NAMES: Final = {
    "data_parallel_size": "mesh, such as mesh='data=2,model=1'",
    "enable_prefix_caching": "state_cache_gib, where 0 turns the prefix cache off",
    "kv_cache_dtype": "kv_dtype",
    "max_model_len": "max_prompt_tokens and max_tokens_limit; the model itself has no limit",
    "max_num_batched_tokens": "prefill_chunk",
    "max_num_seqs": "slots",
    "quantization": "quantize",
    "tensor_parallel_size": "mesh, such as mesh='data=1,model=2'",
}
"""vLLM's names of settings that Roost has in another form."""


def load_model_settings(model: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Settings:
    """Returns the settings of a model.

    Args:
      model: The model, as for `roost serve`.
      given: Settings from the caller.
      defaults: Values of settings that neither the caller, nor the environment, nor the config file sets.

    Raises:
      TypeError: A setting's name is unknown.
      ConfigError: A value cannot be used.
    """
    for name in given:
        if name not in ModelSettings.__annotations__:
            raise TypeError(_unknown(name))
    try:
        settings = load_settings({**given, "model": model}, flag_label=str)
    except SettingsError as error:
        raise ConfigError(str(error)) from None
    unset = {name: value for name, value in defaults.items() if name not in settings.model_fields_set}
    return settings.model_copy(update=unset)


def _unknown(name: str) -> str:
    if name in _VLLM_NAMES:
        return f"{name} is vLLM's name: use {_VLLM_NAMES[name]}"
    guess = next(iter(difflib.get_close_matches(name, sorted(ModelSettings.__annotations__), 1)), None)
    return f"there is no setting {name!r}" + ("" if guess is None else f"; did you mean {guess}?")
