"""`EngineArgs`: vLLM's keywords of an engine as settings of `LLM` and `AsyncLLM`."""

from collections.abc import Mapping
from dataclasses import make_dataclass
from typing import Any, Final

from .settings import ModelSettings, is_vllm_neutral, unknown_setting

_RENAMED: Final = {
    "kv_cache_dtype": "kv_dtype",
    "max_num_batched_tokens": "prefill_chunk",
    "max_num_seqs": "slots",
    "quantization": "quantize",
}
"""Settings of Roost by vLLM's names, where their values are the same."""

_Settings: Final = make_dataclass(
    "_Settings", [("model", str, "demo"), *((name, Any, None) for name in ModelSettings.__annotations__)]
)


class EngineArgs(_Settings):  # type: ignore[misc, valid-type]  # fields are those of `ModelSettings`
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


_AXES: Final = {"data_parallel_size": "data", "tensor_parallel_size": "model"}
"""Axes of the mesh by vLLM's names of their sizes."""
