"""Names and layouts of official Flax checkpoints, as views of their arrays in Hugging Face's layout."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..model.config import BlockType, ModelConfig
from .layout import TensorSpec, tensor_specs


@dataclass(frozen=True, slots=True)
class FlaxView:
    """Place of a Hugging Face tensor in an official array.

    Attributes:
      key: Name of the array: its path joined by dots.
      index: Index into the leading axes of an array that holds two tensors, such as [2, D, F] or [2, 1, 1, F].
      turn: Difference of the layouts: none, transposed, or taps, where [K, E] stands for [E, 1, K].
    """

    key: str
    index: tuple[int, ...] = ()
    turn: Literal["none", "transposed", "taps"] = "none"

    def of(self, array: Any) -> Any:
        """Returns the tensor as a view of the array, which may be NumPy's or TensorStore's.

        Raises:
          IndexError: The array has too few axes.
        """
        part = array[self.index] if self.index else array
        if self.turn == "none":
            return part
        return part.T[:, None] if self.turn == "taps" else part.T

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
