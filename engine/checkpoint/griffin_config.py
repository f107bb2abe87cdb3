"""The config of an official checkpoint: its sizes are the parameters', the rest a file's or a preset's (spec 4.1)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..core.errors import CheckpointError
from ..model.config import PRESETS, BlockType, ModelConfig

NAME: Final = "griffin_config.json"

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
"""The official names of the fields, and ours."""

_UNSAID: Final[Mapping[str, type]] = {
    "attention_window_size": int,
    "logits_soft_cap": float,
    "embeddings_scale_by_sqrt_dim": bool,
}
"""What no parameter's shape tells, and its type."""

_KIND_NAMES: Final[Mapping[type, str]] = {int: "a whole number", float: "a number", bool: "true or false"}


def config_of_arrays(directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> ModelConfig:
    """The config of the checkpoint in a folder.

    Args:
      directory: it may hold a `griffin_config.json`, or the folder around it.
      shapes: of the arrays, by their official names.
      dtype: in which they are stored.

    Raises:
      CheckpointError: an array that tells a size is missing, the file is broken or tells other sizes, or there is none
        and no preset has these sizes.
    """
    try:
        sizes = _sizes(shapes)
    except (KeyError, ValueError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else "with the expected number of axes"
        raise CheckpointError(
            f"{directory}: is no RecurrentGemma checkpoint: it has no array {missing}; download all of it again"
        ) from None
    for file in (directory / NAME, directory.resolve().parent / NAME):
        if file.is_file():
            return ModelConfig(**sizes, **_unsaid(file, sizes), dtype=dtype)
    for preset in PRESETS.values():
        if all(getattr(preset, name) == size for name, size in sizes.items()):
            said = {ours: getattr(preset, ours) for name, ours in FIELDS.items() if name in _UNSAID}
            return ModelConfig(**sizes, **said, dtype=dtype)
    raise CheckpointError(
        f"{directory}: its sizes are those of no preset ({', '.join(PRESETS)}), so put a {NAME} there that has "
        f"{', '.join(_UNSAID)}"
    )


def griffin_fields(config: ModelConfig) -> dict[str, Any]:
    """The content of a `griffin_config.json`."""
    return {name: getattr(config, ours) for name, ours in FIELDS.items()}


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the parameters say of themselves.

    Raises:
      KeyError, ValueError: an array is missing or has other axes.
    """
    vocab_size, width = shapes["embedder.input_embedding"]
    _, _, mlp_width = shapes["blocks.0.mlp_block.ffw_up.w"]
    block_types: list[BlockType] = []
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


def _unsaid(file: Path, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """What the file adds to the sizes, after a look at whether it means these parameters."""
    content = _read(file)
    for name, ours in FIELDS.items():
        told, found = content.get(name), sizes.get(ours)
        told = tuple(told) if isinstance(told, list) else told
        if told is not None and found is not None and told != found:
            shown = [list(value) if isinstance(value, tuple) else value for value in (told, found)]
            raise CheckpointError(
                f"{file}: {name} is {shown[0]}, but the parameters have {shown[1]}; take the config that belongs to "
                "them"
            )
    unsaid = {}
    for name, kind in _UNSAID.items():
        value = content.get(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(f"{file}: {name} must be {_KIND_NAMES[kind]}, got {value!r}")
        unsaid[FIELDS[name]] = value
    return unsaid


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: must hold a JSON object")
    return content
