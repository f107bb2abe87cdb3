"""The `quantization_config` of a Hugging Face config, as compressed-tensors writes it. This module does not import JAX.

Int8 is its format `int-quantized`, int4 its format `pack-quantized`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..types.errors import CheckpointError

INT4_GROUP_SIZE: Final = 64
"""Largest number of inputs that share a scale in matrices that Roost quantises to int4."""

_GROUP_SIZES: Final = (32, 64, 128)
"""Numbers of inputs that may share a scale in a checkpoint in int4."""

_METHOD: Final = "compressed-tensors"
_PACKED: Final = "pack-quantized"

INT8: Final[Mapping[str, Any]] = {
    "quant_method": _METHOD,
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear", "Embedding"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
"""The `quantization_config` of a checkpoint in int8."""


@dataclass(frozen=True, slots=True)
class StoredQuantization:
    """Format in which a checkpoint's matrices are stored.

    Attributes:
      name: Name of the format; None if the matrices are not quantised.
      group_size: Largest number of inputs that share a scale in int4.
    """

    name: Literal["int8", "int4"] | None
    group_size: int = INT4_GROUP_SIZE


def read_quantization(fields: Any) -> StoredQuantization:
    """Returns the format that a `quantization_config` describes.

    Raises:
      CheckpointError: It is another format, or has a field that products or files here do not support.
    """
    if not isinstance(fields, Mapping):
        raise _refused("", fields)
    if fields.get("quant_method") != _METHOD:
        raise _refused("quant_method ", fields.get("quant_method"), _METHOD)
    if fields.get("format") == _PACKED:
        return StoredQuantization("int4", _read_int4(fields))
    if not _is_int8(fields):
        raise _refused("format ", fields.get("format"), f"{INT8['format']} in int8 and {_PACKED} in int4")
    return StoredQuantization("int8")


def int4_fields(inputs: Mapping[str, int], largest: int) -> dict[str, Any]:
    """Returns the `quantization_config` of a checkpoint in int4, whose embedding is in 8 bits.

    Args:
      inputs: Number of inputs of the matrices, by the names of their modules.
      largest: Largest number of inputs that share a scale.
    """
    modules: dict[int, list[str]] = {}
    for name, count in inputs.items():
        modules.setdefault(math.gcd(count, largest), []).append(f"re:.*[.]{name}$")
    groups = [_group(names, num_bits=4, strategy="group", group_size=size) for size, names in modules.items()]
    groups.append(_group(["Embedding"], num_bits=8, strategy="channel", group_size=None))
    return {
        "quant_method": _METHOD,
        "format": _PACKED,
        "quantization_status": "compressed",
        "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
        "ignore": [],
    }


def _group(targets: list[str], **weights: Any) -> dict[str, Any]:
    whole = {"type": "int", "symmetric": True, "dynamic": False, **weights}
    return {"targets": targets, "weights": whole, "input_activations": None, "output_activations": None}


def _is_int8(fields: Mapping[str, Any]) -> bool:
    try:
        groups = fields["config_groups"].values()
        mine = INT8["config_groups"]["group_0"]["weights"]
        same_weights = all(
            group["weights"][key] == mine[key]
            for group in groups
            for key in ("num_bits", "type", "symmetric", "strategy")
        )
        return bool(same_weights) and fields["format"] == INT8["format"]
    except (KeyError, TypeError, AttributeError):
        return False


def _read_int4(fields: Mapping[str, Any]) -> int:
    """Returns the largest group size of a packed checkpoint, after checking everything that changes its products."""
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if fields.get(name):
            raise _refused(f"{name} ", fields[name], "null")
    groups = fields.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _refused("config_groups ", groups, "groups in 4 bits")
    sizes = [_check_group(f"config_groups.{name}", group) for name, group in groups.items()]
    if not any(sizes):
        raise _refused("num_bits ", 8, "4 for matrices of layers")
    return max(size for size in sizes if size is not None)


def _check_group(name: str, group: Any) -> int | None:
    """Returns the group size of a config group in 4 bits; None for one in 8 bits, which is the embedding's."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise _refused(f"{name}.weights ", weights, "an object")
    for key, supported in (
        ("input_activations", (None,)),
        ("output_activations", (None,)),
        ("format", (None, _PACKED)),
    ):
        if group.get(key) not in supported:
            raise _refused(f"{name}.{key} ", group[key], _shown(supported))
    bits = weights.get("num_bits")
    for key, (default, supported) in {**_WEIGHTS, **(_IN_8_BITS if bits == 8 else _IN_4_BITS)}.items():
        if weights.get(key, default) not in supported:
            raise _refused(f"{name}.weights.{key} ", weights.get(key, default), _shown(supported))
    return None if bits == 8 else int(weights["group_size"])


_WEIGHTS: Final[Mapping[str, tuple[Any, tuple[Any, ...]]]] = {
    "type": ("int", ("int",)),
    "symmetric": (True, (True,)),
    "dynamic": (False, (False,)),
    "actorder": (None, (None, False, "weight", "static")),  # these leave the columns in their order
}
"""Fields of a group's weights: default, and supported values."""

_IN_4_BITS: Final[Mapping[str, tuple[Any, tuple[Any, ...]]]] = {
    "num_bits": (None, (4,)),
    "strategy": ("group", ("group",)),
    "group_size": (None, _GROUP_SIZES),
}

_IN_8_BITS: Final[Mapping[str, tuple[Any, tuple[Any, ...]]]] = {"strategy": (None, ("channel",))}


def _shown(values: tuple[Any, ...]) -> str:
    return " or ".join("null" if value is None else str(value) for value in values)


def _refused(field: str, value: Any, supported: str | None = None) -> CheckpointError:
    only = "" if supported is None else f", only {supported}"
    return CheckpointError(
        f"quantization_config: {field}{value!r} is not supported{only}; take the original weights, and --quantize int8 "
        "or int4"
    )
