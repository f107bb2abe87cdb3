"""Config of a LoRA adapter, as PEFT writes it. Fields are refused if merging would take more than a sum."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..model.config import read_fields
from ..types.errors import CheckpointError

NAME: Final = "adapter_config.json"

_NO_EFFECT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",  # PEFT ignores it for linear layers, and all matrices here are linear layers'
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Fields that do not change the sum. The tensors' names say which matrices an adapter changes."""

_READ: Final = frozenset(
    {"alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "rank_pattern", "use_rslora"}
)

_INITS: Final = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the base model's matrices as they are."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Ranks and scales of an adapter's matrices.

    Attributes:
      base: Name of the model that the adapter was trained on; None if the file does not say.
      rank: Rank of matrices that `ranks` does not name.
      alpha: Numerator of the scale of matrices that `alphas` does not name.
      ranks: Ranks by patterns of module names.
      alphas: Numerators by patterns of module names.
      has_root: Whether the scale is alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732), not alpha / rank.
    """

    base: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    has_root: bool

    def rank_of(self, module: str) -> int:
        """Returns the rank of a module's adapter."""
        return _of_pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Returns the factor of B A for a module."""
        rank = self.rank_of(module)
        return _of_pattern(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.has_root else rank)


def read_adapter_config(file: Path) -> AdapterConfig:
    """Reads an `adapter_config.json`.

    Raises:
      CheckpointError: The file is missing or invalid, or the adapter is more than a sum of low rank.
    """
    return read_fields(file, _config, hint="; --lora takes a folder by PEFT")


def _config(fields: Mapping[str, Any]) -> AdapterConfig:
    _check_supported(fields)
    base = fields.get("base_model_name_or_path")
    return AdapterConfig(
        base=base if isinstance(base, str) else None,
        rank=_rank("r", fields.get("r")),
        alpha=_number("lora_alpha", fields.get("lora_alpha")),
        ranks={pattern: _rank("rank_pattern", value) for pattern, value in _patterns(fields, "rank_pattern")},
        alphas={pattern: _number("alpha_pattern", value) for pattern, value in _patterns(fields, "alpha_pattern")},
        has_root=bool(fields.get("use_rslora", False)),
    )


def _check_supported(fields: Mapping[str, Any]) -> None:
    if fields.get("peft_type") != "LORA":
        raise CheckpointError(f"peft_type must be LORA, got {fields.get('peft_type')!r}")
    if fields.get("bias", "none") != "none":
        raise CheckpointError(f"bias {fields['bias']!r} is not supported, only 'none'; merge the adapter with PEFT")
    if (init := fields.get("init_lora_weights", True)) not in _INITS:
        raise CheckpointError(
            f"init_lora_weights {init!r} changes the base model, which only PEFT repeats; merge the adapter with PEFT"
        )
    for name in sorted(fields.keys() - _NO_EFFECT - _READ):
        if fields[name]:
            raise CheckpointError(f"{name} is not supported; merge the adapter with PEFT, and serve the whole model")


def _patterns(fields: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    patterns = fields.get(name) or {}
    if not isinstance(patterns, Mapping):
        raise CheckpointError(f"{name} must be an object, got {patterns!r}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{name}: {pattern!r} is no regular expression ({error})") from None
    return list(patterns.items())


def _of_pattern[Value](patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """Returns the value of the first pattern that matches the end of a module's name, from the start of one part on."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", module)), default)


def _rank(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{name} must be a number, got {value!r}")
    return float(value)
