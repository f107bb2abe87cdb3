"""Names and layouts of official Flax checkpoints, as views of their arrays in Hugging Face's layout."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from ..model.config import ModelConfig
from ..types.errors import CheckpointError
from .layout import TensorSpec, tensor_specs
from .tensors import BFLOAT16


@dataclass(frozen=True, slots=True)
class FlaxView:
    """Place of a Hugging Face tensor in an official array.

    Attributes:
      key: Name of the array: its path joined by dots.
      index: Index into the leading axes of an array that holds two tensors, such as [2, D, F] or [2, 1, 1, F].
      turn: Difference of the layouts: none, transposed, or depthwise, where [K, E] stands for [E, 1, K].
    """

    key: str
    index: tuple[int, ...] = ()
    turn: Literal["none", "transposed", "depthwise"] = "none"

    def of(self, array: Any) -> Any:
        """Returns the tensor as a view of the array, which may be NumPy's or TensorStore's.

        Raises:
          IndexError: The array has too few axes.
        """
        part = array[self.index] if self.index else array
        if self.turn == "none":
            return part
        return part.T[:, None] if self.turn == "depthwise" else part.T

    def shape_of(self, array: Any) -> tuple[int, ...]:
        """Returns the shape of the tensor; the array's own if it has too few axes."""
        try:
            return tuple(self.of(array).shape)
        except (IndexError, ValueError):
            return tuple(array.shape)

    def array_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the whole array for a tensor of this shape."""
        turned = shape if self.turn == "none" else (shape[-1], shape[0])
        leading = (2, 1, 1)[: len(self.index)]
        return (*leading, *turned)


_SHARED: Final[Mapping[str, FlaxView]] = {
    "temporal_pre_norm.weight": FlaxView("temporal_pre_norm.scale"),
    "channel_pre_norm.weight": FlaxView("channel_pre_norm.scale"),
    "mlp_block.gate_proj.weight": FlaxView("mlp_block.ffw_up.w", (0,), "transposed"),
    "mlp_block.gate_proj.bias": FlaxView("mlp_block.ffw_up.b", (0, 0, 0)),
    "mlp_block.up_proj.weight": FlaxView("mlp_block.ffw_up.w", (1,), "transposed"),
    "mlp_block.up_proj.bias": FlaxView("mlp_block.ffw_up.b", (1, 0, 0)),
    "mlp_block.down_proj.weight": FlaxView("mlp_block.ffw_down.kernel", turn="transposed"),
    "mlp_block.down_proj.bias": FlaxView("mlp_block.ffw_down.bias"),
}

_BLOCKS: Final[Mapping[str, Mapping[str, FlaxView]]] = {
    "recurrent": {
        **{f"{name}.weight": FlaxView(f"{name}.kernel", turn="transposed") for name in ("linear_x", "linear_y")},
        "linear_out.weight": FlaxView("linear_out.kernel", turn="transposed"),
        **{f"{name}.bias": FlaxView(f"{name}.bias") for name in ("linear_x", "linear_y", "linear_out")},
        "conv_1d.weight": FlaxView("conv_1d.w", turn="depthwise"),
        "conv_1d.bias": FlaxView("conv_1d.b"),
        "rg_lru.recurrent_param": FlaxView("rg_lru.a_param"),
        "rg_lru.input_gate_weight": FlaxView("rg_lru.input_gate.w"),
        "rg_lru.input_gate_bias": FlaxView("rg_lru.input_gate.b"),
        "rg_lru.recurrent_gate_weight": FlaxView("rg_lru.a_gate.w"),
        "rg_lru.recurrent_gate_bias": FlaxView("rg_lru.a_gate.b"),
    },
    "attention": {
        **{f"{name}_proj.weight": FlaxView(f"proj_{name}.kernel", turn="transposed") for name in "qkv"},
        "o_proj.weight": FlaxView("proj_final.kernel", turn="transposed"),
        "o_proj.bias": FlaxView("proj_final.bias"),
    },
}

_ENDS: Final[Mapping[str, FlaxView]] = {
    "model.embed_tokens.weight": FlaxView("embedder.input_embedding"),
    "model.final_norm.weight": FlaxView("final_norm.scale"),
}


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
    views = {spec.name: view for spec, view in flax_views(config) if view.key in arrays}
    known = {view.key for view in views.values()}
    return views | {key: FlaxView(key) for key in arrays if key not in known}


def flax_views(config: ModelConfig) -> list[tuple[TensorSpec, FlaxView]]:
    """Returns every tensor of Hugging Face's layout with its place in the official one."""
    return [(spec, _view(spec.name, config)) for spec in tensor_specs(config)]


def _view(name: str, config: ModelConfig) -> FlaxView:
    if name in _ENDS:
        return _ENDS[name]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(temporal_block\.)?(.*)", name)
    assert found is not None
    layer, is_temporal, rest = int(found[1]), found[2], found[3]
    kind = config.block_types[layer]
    prefix, table = (f"{kind}_block.", _BLOCKS[kind]) if is_temporal else ("", _SHARED)
    view = table[rest]
    return FlaxView(f"blocks.{layer}.{prefix}{view.key}", view.index, view.turn)
