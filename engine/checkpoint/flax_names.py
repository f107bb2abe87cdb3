"""The official Flax names and layouts (spec 4.1), as views of arrays in which Hugging Face's tensors appear."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..model.config import BlockType, ModelConfig
from .layout import TensorSpec, tensor_specs


@dataclass(frozen=True, slots=True)
class FlaxView:
    """Where a tensor lies in an official array.

    Attributes:
      key: the array's name, its path joined by dots.
      index: the place in the leading axes, for an array that holds two tensors, as [2, D, F] and [2, 1, 1, F] do.
      turn: how the layouts differ: not at all, transposed, or [K, E] for [E, 1, K] (a convolution's taps).
    """

    key: str
    index: tuple[int, ...] = ()
    turn: Literal["none", "transposed", "taps"] = "none"

    def of(self, array: Any) -> Any:
        """The tensor as a view of the array, which may be NumPy's or TensorStore's.

        Raises:
          IndexError: the array has too few axes.
        """
        part = array[self.index] if self.index else array
        if self.turn == "none":
            return part
        return part.T[:, None] if self.turn == "taps" else part.T

    def array_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the whole array, where the tensor's is `shape`."""
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

_BLOCKS: Final[Mapping[BlockType, Mapping[str, FlaxView]]] = {
    "recurrent": {
        **{f"{name}.weight": FlaxView(f"{name}.kernel", turn="transposed") for name in ("linear_x", "linear_y")},
        "linear_out.weight": FlaxView("linear_out.kernel", turn="transposed"),
        **{f"{name}.bias": FlaxView(f"{name}.bias") for name in ("linear_x", "linear_y", "linear_out")},
        "conv_1d.weight": FlaxView("conv_1d.w", turn="taps"),
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


def flax_views(config: ModelConfig) -> list[tuple[TensorSpec, FlaxView]]:
    """Every tensor of Hugging Face's layout, and where it lies in the official one."""
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
