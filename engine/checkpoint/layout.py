"""Layout of the model's parameters: the tensors that each is made of, with their names in every format, in one table.

Hugging Face's names are also Roost's. Official checkpoints, which Orbax or Flax's msgpack hold, have other names and
other layouts; a `FlaxView` is a tensor's place in them.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from ..model.config import ModelConfig, ParamPath
from ..types.host_memory import HostArray

EMBEDDING: Final = "model.embed_tokens.weight"
"""Name of the embedding."""

EMBEDDING_ARRAY: Final = "embedder.input_embedding"
"""Name of the embedding in official checkpoints."""


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


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Tensor of a checkpoint.

    Attributes:
      name: Name of the tensor in the checkpoint.
      shape: Shape of the tensor in the checkpoint.
      official: Place of the tensor, or of the matrix that it belongs to, in an official checkpoint.
    """

    name: str
    shape: tuple[int, ...]
    official: FlaxView

    @property
    def is_matrix(self) -> bool:
        """Whether int8 and int4 quantise the tensor: the embedding and all matrices except gates."""
        return len(self.shape) == 2 and self.name.endswith(".weight")

    @property
    def is_embedding(self) -> bool:
        """Whether the tensor is the embedding."""
        return self.name == EMBEDDING

    @property
    def scale(self) -> "TensorSpec":
        """Tensor of the row scales of a matrix stored in int8, with the name that compressed-tensors uses."""
        return replace(self, name=f"{self.name}_scale", shape=(self.shape[0], 1))

    @property
    def packed(self) -> "TensorSpec":
        """Tensor of a matrix's values in a checkpoint in int4: 32-bit words of 8 inputs, of 4 for the embedding."""
        outputs, inputs = self.shape
        return replace(self, name=f"{self.name}_packed", shape=(outputs, inputs // (4 if self.is_embedding else 8)))

    @property
    def packed_shape(self) -> "TensorSpec":
        """Tensor with the shape of a matrix in a checkpoint in int4."""
        return replace(self, name=f"{self.name}_shape", shape=(2,))

    def group_scale(self, largest: int) -> "TensorSpec":
        """Returns the tensor of the scales of a matrix in a checkpoint in int4; the embedding has one for each row.

        Args:
          largest: Largest number of inputs that share a scale.
        """
        if self.is_embedding:
            return self.scale
        outputs, inputs = self.shape
        return replace(self.scale, shape=(outputs, inputs // math.gcd(inputs, largest)))


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """Composition of a parameter.

    Attributes:
      tensors: Tensors that are concatenated.
      axis: Axis along which they are concatenated.
      is_conv: Whether the parameter is [K, E], stored as a convolution's weight of shape [E, 1, K].
    """

    tensors: tuple[TensorSpec, ...]
    axis: int = 0
    is_conv: bool = False

    def views(self, parameter: HostArray) -> list[HostArray]:
        """Returns views of the parameter's memory as its tensors, for reading or writing."""
        if self.is_conv:
            return [parameter.T[:, None]]
        sizes = [t.shape[self.axis] for t in self.tensors]
        return np.split(parameter, list(itertools.accumulate(sizes))[:-1], self.axis)


def checkpoint_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    """Returns the composition of every parameter of the model, by its path."""
    layout: dict[ParamPath, ParamSpec] = {
        ("embedding",): _spec(_tensor(EMBEDDING, (config.vocab_size, config.width), EMBEDDING_ARRAY)),
        ("final_norm", "scale"): _spec(_tensor("model.final_norm.weight", (config.width,), "final_norm.scale")),
    }
    for index, kind in enumerate(config.block_types):
        block = _attention_layout(config) if kind == "attention" else _recurrent_layout(config)
        layer = _shared_layout(config) | {
            ("temporal", *path): _inside(spec, "temporal_block.", f"{kind}_block.") for path, spec in block.items()
        }
        for path, spec in layer.items():
            layout["blocks", index, *path] = _inside(spec, f"model.layers.{index}.", f"blocks.{index}.")
    return layout


def tensor_specs(config: ModelConfig) -> Iterator[TensorSpec]:
    """Returns every tensor of a checkpoint, layer by layer."""
    return itertools.chain.from_iterable(spec.tensors for spec in checkpoint_layout(config).values())


def _shared_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, f, up = config.width, config.mlp_width, "mlp_block.ffw_up"
    return {
        ("temporal_norm", "scale"): _spec(_tensor("temporal_pre_norm.weight", (d,), "temporal_pre_norm.scale")),
        ("mlp_norm", "scale"): _spec(_tensor("channel_pre_norm.weight", (d,), "channel_pre_norm.scale")),
        ("mlp", "gate_up", "weight"): _spec(
            _matrix("mlp_block.gate_proj.weight", f, d, f"{up}.w", 0),
            _matrix("mlp_block.up_proj.weight", f, d, f"{up}.w", 1),
        ),
        ("mlp", "gate_up", "bias"): _spec(
            _tensor("mlp_block.gate_proj.bias", (f,), f"{up}.b", 0, 0, 0),
            _tensor("mlp_block.up_proj.bias", (f,), f"{up}.b", 1, 0, 0),
        ),
        ("mlp", "down", "weight"): _spec(_matrix("mlp_block.down_proj.weight", d, f, "mlp_block.ffw_down.kernel")),
        ("mlp", "down", "bias"): _spec(_tensor("mlp_block.down_proj.bias", (d,), "mlp_block.ffw_down.bias")),
    }


def _recurrent_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, e, n = config.width, config.lru_width, config.num_heads
    gate, conv = (n, e // n, e // n), FlaxView("conv_1d.w", turn="depthwise")
    gates = {"rg_lru.input_gate": "rg_lru.input_gate", "rg_lru.recurrent_gate": "rg_lru.a_gate"}.items()
    return {
        ("xy", "weight"): _spec(*(_matrix(f"{x}.weight", e, d, f"{x}.kernel") for x in ("linear_x", "linear_y"))),
        ("xy", "bias"): _spec(*(_tensor(f"{x}.bias", (e,), f"{x}.bias") for x in ("linear_x", "linear_y"))),
        ("conv_weight",): ParamSpec((TensorSpec("conv_1d.weight", (e, 1, config.conv_width), conv),), is_conv=True),
        ("conv_bias",): _spec(_tensor("conv_1d.bias", (e,), "conv_1d.b")),
        ("rg_lru", "gate_weight"): _spec(*(_tensor(f"{x}_weight", gate, f"{y}.w") for x, y in gates), axis=2),
        ("rg_lru", "gate_bias"): _spec(*(_tensor(f"{x}_bias", gate[:2], f"{y}.b") for x, y in gates), axis=1),
        ("rg_lru", "a_param"): _spec(_tensor("rg_lru.recurrent_param", (e,), "rg_lru.a_param")),
        ("out", "weight"): _spec(_matrix("linear_out.weight", d, e, "linear_out.kernel")),
        ("out", "bias"): _spec(_tensor("linear_out.bias", (d,), "linear_out.bias")),
    }


def _attention_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, sizes = config.width, {"q": config.width, "k": config.key_width, "v": config.key_width}
    return {
        ("qkv",): _spec(*(_matrix(f"{x}_proj.weight", e, d, f"proj_{x}.kernel") for x, e in sizes.items())),
        ("out", "weight"): _spec(_matrix("o_proj.weight", d, d, "proj_final.kernel")),
        ("out", "bias"): _spec(_tensor("o_proj.bias", (d,), "proj_final.bias")),
    }


def _spec(*tensors: TensorSpec, axis: int = 0) -> ParamSpec:
    return ParamSpec(tensors, axis)


def _tensor(name: str, shape: tuple[int, ...], array: str, *index: int) -> TensorSpec:
    return TensorSpec(name, shape, FlaxView(array, index))


def _matrix(name: str, outputs: int, inputs: int, array: str, *index: int) -> TensorSpec:
    return TensorSpec(name, (outputs, inputs), FlaxView(array, index, "transposed"))


def _inside(spec: ParamSpec, prefix: str, official_prefix: str) -> ParamSpec:
    """Returns the parameter with prefixes of its tensors' names."""
    tensors = (
        replace(t, name=prefix + t.name, official=replace(t.official, key=official_prefix + t.official.key))
        for t in spec.tensors
    )
    return replace(spec, tensors=tuple(tensors))
