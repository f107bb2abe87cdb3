"""Official checkpoints, whichever file format they have: their arrays and their config.

A config's sizes come from the arrays, and its other fields from `griffin_config.json` or a preset.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..model.config import PRESETS, ModelConfig
from ..types.errors import CheckpointError
from .format import BFLOAT16
from .layout import EMBEDDING_ARRAY, FlaxView, tensor_specs

GRIFFIN_CONFIG: Final = "griffin_config.json"
"""Name of the config file that Roost writes next to an official checkpoint."""

FIELDS: Final[Mapping[str, str]] = {
    "vocab_size": "vocab_size",
    "width": "width",
    "mlp_expanded_width": "mlp_width",
    "num_heads": "num_heads",
    "lru_width": "lru_width",
    "block_types": "block_types",
    "attention_window_size": "window",
    "logits_soft_cap": "logits_soft_cap",
    "embeddings_scale_by_sqrt_dim": "scale_embeddings",
}
"""Names of `ModelConfig`'s fields by their official names."""

_NOT_IN_SHAPES: Final[Mapping[str, type]] = {
    "attention_window_size": int,
    "logits_soft_cap": float,
    "embeddings_scale_by_sqrt_dim": bool,
}
"""Fields that no array's shape determines, and their types."""

_KIND_NAMES: Final[Mapping[type, str]] = {int: "a whole number", float: "a number", bool: "true or false"}


def config_of_arrays(directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> ModelConfig:
    """Returns the config of the checkpoint in a folder.

    Args:
      directory: Folder of the checkpoint; it or its parent may contain a `griffin_config.json`.
      shapes: Shapes of the arrays, by their official names.

    Raises:
      CheckpointError: An array that determines a size is missing, the file is invalid or disagrees with the arrays, or
        neither a file nor a preset has the other fields.
    """
    try:
        sizes = _sizes(shapes)
    except (KeyError, ValueError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else "with the expected number of axes"
        raise CheckpointError(
            f"{directory}: is no RecurrentGemma checkpoint: it has no array {missing}; download all of it again"
        ) from None
    for file in (directory / GRIFFIN_CONFIG, directory.resolve().parent / GRIFFIN_CONFIG):
        if file.is_file():
            return ModelConfig(**sizes, **_other_fields(file, sizes), dtype=dtype)
    for preset in PRESETS.values():
        if all(getattr(preset, name) == size for name, size in sizes.items()):
            others = {ours: getattr(preset, ours) for name, ours in FIELDS.items() if name in _NOT_IN_SHAPES}
            return ModelConfig(**sizes, **others, dtype=dtype)
    raise CheckpointError(
        f"{directory}: its sizes are those of no preset ({', '.join(PRESETS)}), so put a {GRIFFIN_CONFIG} there that "
        f"has {', '.join(_NOT_IN_SHAPES)}"
    )


def griffin_fields(config: ModelConfig) -> dict[str, Any]:
    """Returns the content of a `griffin_config.json`."""
    return {name: getattr(config, ours) for name, ours in FIELDS.items()}


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the fields that the arrays' shapes determine.

    Raises:
      KeyError: An array is missing.
      ValueError: An array has an unexpected number of axes.
    """
    vocab_size, width = shapes[EMBEDDING_ARRAY]
    _, _, mlp_width = shapes["blocks.0.mlp_block.ffw_up.w"]
    block_types: list[str] = []
    while f"blocks.{len(block_types)}.temporal_pre_norm.scale" in shapes:
        attends = f"blocks.{len(block_types)}.attention_block.proj_k.kernel" in shapes
        block_types.append("attention" if attends else "recurrent")
    sizes = {"vocab_size": vocab_size, "width": width, "mlp_width": mlp_width, "block_types": tuple(block_types)}
    if "recurrent" in block_types:
        block = f"blocks.{block_types.index('recurrent')}.recurrent_block"
        num_heads, size, _ = shapes[f"{block}.rg_lru.a_gate.w"]
        conv_width, _ = shapes[f"{block}.conv_1d.w"]
        return sizes | {"num_heads": num_heads, "lru_width": num_heads * size, "conv_width": conv_width}
    _, head_size = shapes[f"blocks.{block_types.index('attention')}.attention_block.proj_k.kernel"]
    return sizes | {"num_heads": width // head_size, "lru_width": width}


def _other_fields(file: Path, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that only the file has, after checking that its other fields agree with the arrays."""
    content = _read(file)
    for name, ours in FIELDS.items():
        declared, found = content.get(name), sizes.get(ours)
        declared = tuple(declared) if isinstance(declared, list) else declared
        if declared is not None and found is not None and declared != found:
            shown = [list(value) if isinstance(value, tuple) else value for value in (declared, found)]
            raise CheckpointError(
                f"{file}: {name} is {shown[0]}, but the parameters have {shown[1]}; use the config that belongs to them"
            )
    others = {}
    for name, kind in _NOT_IN_SHAPES.items():
        value = content.get(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{file}: {name} must be {_KIND_NAMES[kind]}, got {value!r}")
        others[FIELDS[name]] = value
    return others


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: must hold a JSON object")
    return content


ARRAY_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    dtype.name: dtype for dtype in (np.dtype("float32"), BFLOAT16, np.dtype("float16"))
}
"""Dtypes that arrays may have, by name."""

_ROOT: Final = "params."
"""Key under which the official package saves the tree; published checkpoints have the tree at the root."""


def without_root[Array](arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Returns arrays by their names in the tree of parameters."""
    rooted = all(name.startswith(_ROOT) for name in arrays)
    return {name.removeprefix(_ROOT) if rooted else name: array for name, array in arrays.items()}


def check_dtype(place: Path, key: str, dtype: str) -> None:
    """Checks the dtype of an array.

    Raises:
      CheckpointError: It is not one of `ARRAY_DTYPES`.
    """
    if dtype not in ARRAY_DTYPES:
        raise CheckpointError(
            f"{place}: array {key} is of type {dtype}, which is not supported, only {', '.join(ARRAY_DTYPES)}"
        )


def views_of(arrays: Collection[str], config: ModelConfig) -> dict[str, FlaxView]:
    """Returns the views of the arrays that exist, by Hugging Face's names; unknown arrays keep their own names."""
    views = {spec.name: spec.official for spec in tensor_specs(config) if spec.official.key in arrays}
    known = {view.key for view in views.values()}
    return views | {key: FlaxView(key) for key in arrays if key not in known}
