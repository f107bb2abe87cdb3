"""Layout of the model's parameters: the tensors of a Hugging Face checkpoint that are joined to each parameter."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ..model.config import ModelConfig, ParamPath
from ..types.arrays import HostArray

EMBEDDING: Final = "model.embed_tokens.weight"
"""Name of the embedding."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Tensor of a checkpoint.

    Attributes:
      name: Name of the tensor in the checkpoint.
      shape: Shape of the tensor in the checkpoint.
    """

    name: str
    shape: tuple[int, ...]

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
        return TensorSpec(f"{self.name}_scale", (self.shape[0], 1))

    @property
    def packed(self) -> "TensorSpec":
        """Tensor of a matrix's values in a checkpoint in int4: 32-bit words of 8 inputs, of 4 for the embedding."""
        outputs, inputs = self.shape
        return TensorSpec(f"{self.name}_packed", (outputs, inputs // (4 if self.is_embedding else 8)))

    @property
    def packed_shape(self) -> "TensorSpec":
        """Tensor with the shape of a matrix in a checkpoint in int4."""
        return TensorSpec(f"{self.name}_shape", (2,))

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
        ("embedding",): _spec(EMBEDDING, (config.vocab_size, config.width)),
        ("final_norm", "scale"): _spec("model.final_norm.weight", (config.width,)),
    }
    for index, kind in enumerate(config.block_types):
        block = _attention_layout(config) if kind == "attention" else _recurrent_layout(config)
        for path, spec in (_shared_layout(config) | block).items():
            named = tuple(TensorSpec(f"model.layers.{index}.{t.name}", t.shape) for t in spec.tensors)
            layout["blocks", index, *path] = replace(spec, tensors=named)
    return layout


def tensor_specs(config: ModelConfig) -> Iterator[TensorSpec]:
    """Returns every tensor of a checkpoint, layer by layer."""
    return itertools.chain.from_iterable(spec.tensors for spec in checkpoint_layout(config).values())


def _spec(*tensors: str | tuple[int, ...], axis: int = 0) -> ParamSpec:
    names, shapes = tensors[:-1], tensors[-1]
    assert isinstance(shapes, tuple)
    return ParamSpec(tuple(TensorSpec(str(name), shapes) for name in names), axis)


def _shared_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, f = config.width, config.mlp_width
    return {
        ("temporal_norm", "scale"): _spec("temporal_pre_norm.weight", (d,)),
        ("mlp_norm", "scale"): _spec("channel_pre_norm.weight", (d,)),
        ("mlp", "gate_up", "weight"): _spec("mlp_block.gate_proj.weight", "mlp_block.up_proj.weight", (f, d)),
        ("mlp", "gate_up", "bias"): _spec("mlp_block.gate_proj.bias", "mlp_block.up_proj.bias", (f,)),
        ("mlp", "down", "weight"): _spec("mlp_block.down_proj.weight", (d, f)),
        ("mlp", "down", "bias"): _spec("mlp_block.down_proj.bias", (d,)),
    }


def _recurrent_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, e, n, t = config.width, config.lru_width, config.num_heads, "temporal_block."
    gates = (f"{t}rg_lru.input_gate", f"{t}rg_lru.recurrent_gate")
    size = e // n
    return {
        ("temporal", "xy", "weight"): _spec(f"{t}linear_x.weight", f"{t}linear_y.weight", (e, d)),
        ("temporal", "xy", "bias"): _spec(f"{t}linear_x.bias", f"{t}linear_y.bias", (e,)),
        ("temporal", "conv_weight"): replace(_spec(f"{t}conv_1d.weight", (e, 1, config.conv_width)), is_conv=True),
        ("temporal", "conv_bias"): _spec(f"{t}conv_1d.bias", (e,)),
        ("temporal", "rg_lru", "gate_weight"): _spec(*(f"{g}_weight" for g in gates), (n, size, size), axis=2),
        ("temporal", "rg_lru", "gate_bias"): _spec(*(f"{g}_bias" for g in gates), (n, size), axis=1),
        ("temporal", "rg_lru", "a_param"): _spec(f"{t}rg_lru.recurrent_param", (e,)),
        ("temporal", "out", "weight"): _spec(f"{t}linear_out.weight", (d, e)),
        ("temporal", "out", "bias"): _spec(f"{t}linear_out.bias", (d,)),
    }


def _attention_layout(config: ModelConfig) -> dict[ParamPath, ParamSpec]:
    d, keys, t = config.width, config.key_width, "temporal_block."
    qkv = tuple(TensorSpec(f"{t}{name}_proj.weight", (rows, d)) for name, rows in (("q", d), ("k", keys), ("v", keys)))
    return {
        ("temporal", "qkv"): ParamSpec(qkv),
        ("temporal", "out", "weight"): _spec(f"{t}o_proj.weight", (d, d)),
        ("temporal", "out", "bias"): _spec(f"{t}o_proj.bias", (d,)),
    }
