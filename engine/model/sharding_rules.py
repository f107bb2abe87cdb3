"""Which part of every parameter, and of the state, each shard of a model has. No arithmetic on either, only shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ..core.arrays import HostArray
from ..core.mesh import MODEL, MeshShape
from .collectives import EVERYWHERE, RINGS, SLOTS
from .config import ModelConfig, ParamPath
from .griffin import Params, abstract_model
from .quantization import QuantizedMatrix, is_quantized
from .state import AttentionState, ModelState, RecurrentState


@dataclass(frozen=True, slots=True)
class Section:
    """Rows or columns of a parameter that belong together.

    Attributes:
      size: how many.
      unit: what is never cut: a head, a gate block.
      is_cut: False for what every shard has whole.
    """

    size: int
    unit: int = 1
    is_cut: bool = True

    def local(self, shards: int) -> int:
        """How many a shard has, with those that it is filled up with."""
        return -(-self.size // self.unit // shards) * self.unit if self.is_cut else self.size


@dataclass(frozen=True, slots=True)
class Cut:
    """How an array is cut: along one axis, each of the sections that follow one another there by itself. Without
    sections it is not cut at all: every shard has all of it."""

    axis: int = 0
    sections: tuple[Section, ...] = ()

    @property
    def spec(self) -> PartitionSpec:
        """Of all shards' parts side by side."""
        return PartitionSpec(*[None] * self.axis, MODEL) if self.sections else EVERYWHERE

    def shape(self, whole: tuple[int, ...], shards: int) -> tuple[int, ...]:
        """Of all shards' parts side by side."""
        count = shards * sum(section.local(shards) for section in self.sections)
        return tuple(count if self.sections and axis == self.axis else n for axis, n in enumerate(whole))

    def part(self, whole: HostArray, index: int, shards: int) -> HostArray:
        """What shard `index` has."""
        if not self.sections:
            return whole
        parts, start = [], 0
        for section in self.sections:
            size = section.local(shards)
            first = min(index * size, section.size) if section.is_cut else 0
            parts.append(self._filled(whole, start + first, start + min(first + size, section.size), size))
            start += section.size
        return parts[0] if len(parts) == 1 else np.concatenate(parts, self.axis)

    def _filled(self, whole: HostArray, start: int, stop: int, size: int) -> HostArray:
        """From `start` to `stop` along the axis, and zeros up to `size`."""
        taken = whole[(slice(None),) * self.axis + (slice(start, stop),)]
        lacking = size - (stop - start)
        widths = [(0, lacking if axis == self.axis else 0) for axis in range(whole.ndim)]
        return np.pad(taken, widths) if lacking else taken


def cut_of(path: ParamPath, config: ModelConfig) -> Cut:
    """How a parameter is cut; its values, if it is quantised."""
    kind = (config.block_types[int(path[1])],) if path[0] == "blocks" else ()
    axis, names = _CUTS.get((*kind, *path[2:]) if kind else path, (0, ()))
    sections = _sections(config)
    return Cut(axis, tuple(sections[name] for name in names))


def quantized_cut(values: Cut) -> QuantizedMatrix:
    """How a quantised matrix is cut; its outputs' scales are there for each shard that has the outputs."""
    return QuantizedMatrix(values, values if values.axis == 0 else Cut())


def cut_params(abstract: Params, config: ModelConfig, shards: MeshShape) -> tuple[Params, Params]:
    """Shapes of the parameters of all shards side by side, and how those lie on the mesh.

    Args:
      abstract: whole ones, from `abstract_model`.
      config: of the model.
      shards: the mesh.
    """
    cuts = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf_cut(path, leaf, config), abstract, is_leaf=is_quantized
    )
    shapes = jax.tree.map(
        lambda cut, x: jax.ShapeDtypeStruct(cut.shape(x.shape, shards.model), x.dtype), cuts, abstract
    )
    return shapes, jax.tree.map(lambda cut: cut.spec, cuts)


def leaf_cut(path: tuple[Any, ...], leaf: Any, config: ModelConfig) -> Any:
    """A `Cut` for each array of a parameter.

    Args:
      path: by JAX's keys.
      leaf: an array or a quantised matrix, or its shapes.
      config: of the model.
    """
    cut = cut_of(tuple(key.key for key in path), config)
    return quantized_cut(cut) if isinstance(leaf, QuantizedMatrix) else cut


def channels(config: ModelConfig, shards: MeshShape) -> int:
    """Of a recurrent layer's state, those of all shards."""
    return shards.model * _sections(config)["channels"].local(shards.model)


def bytes_per_device(shapes: Params, specs: Params, shards: MeshShape) -> int:
    """Of parameters, as `cut_params` gives them."""
    sizes = jax.tree.map(
        lambda x, spec: x.size * x.dtype.itemsize // (1 if spec == EVERYWHERE else shards.model), shapes, specs
    )
    return sum(jax.tree.leaves(sizes))


def weight_bytes(config: ModelConfig, shards: MeshShape, dtype: str, matrix_dtype: str | None = None) -> int:
    """Of all parameters on each device, where gates are in `dtype`, too, and matrices unless they have their own."""
    matrices = None if matrix_dtype is None else jnp.dtype(matrix_dtype)
    _, whole = abstract_model(config, jnp.dtype(dtype), matrix_dtype=matrices)
    return bytes_per_device(*cut_params(whole, config, shards), shards)


def slot_bytes(config: ModelConfig, shards: MeshShape, dtype_bytes: int) -> int:
    """Of the state of a slot with all that it is filled up with: of so many slots as there are shards, each device has
    as much as one takes, a part of every recurrent state and one whole set of rings."""
    filled = replace(config, lru_width=channels(config, shards), num_heads=1, width=config.head_dim)
    return filled.state_bytes(dtype_bytes)


def state_specs(state: ModelState) -> ModelState:
    """How a pool's state lies on the mesh: slots along `data`, channels along `model`, rings along both."""

    def layer(kind: Any) -> Any:
        if isinstance(kind, AttentionState):
            return jax.tree.map(lambda _: RINGS, kind)
        return RecurrentState(PartitionSpec(*SLOTS, MODEL), PartitionSpec(None, *SLOTS, MODEL))  # type: ignore[arg-type]

    return tuple(map(layer, state))


def _sections(config: ModelConfig) -> Mapping[str, Section]:
    return {
        "tokens": Section(config.vocab_size),
        "channels": Section(config.lru_width, config.lru_width // config.num_heads),
        "blocks": Section(config.num_heads),
        "hidden": Section(config.mlp_width),
        "heads": Section(config.width, config.head_dim),
        "key, value": Section(2 * config.head_dim, is_cut=False),
    }


_MLP: Final[Mapping[tuple[str, ...], tuple[int, tuple[str, ...]]]] = {
    ("mlp", "gate_up", "weight"): (0, ("hidden", "hidden")),
    ("mlp", "gate_up", "bias"): (0, ("hidden", "hidden")),
    ("mlp", "down", "weight"): (1, ("hidden",)),
}

_CUTS: Final[Mapping[tuple[str | int, ...], tuple[int, tuple[str, ...]]]] = {
    ("embedding",): (0, ("tokens",)),
    **{(kind, *path): cut for kind in ("recurrent", "attention") for path, cut in _MLP.items()},
    ("recurrent", "temporal", "xy", "weight"): (0, ("channels", "channels")),
    ("recurrent", "temporal", "xy", "bias"): (0, ("channels", "channels")),
    ("recurrent", "temporal", "conv_weight"): (1, ("channels",)),
    ("recurrent", "temporal", "conv_bias"): (0, ("channels",)),
    ("recurrent", "temporal", "rg_lru", "a_param"): (0, ("channels",)),
    ("recurrent", "temporal", "rg_lru", "gate_weight"): (0, ("blocks",)),
    ("recurrent", "temporal", "rg_lru", "gate_bias"): (0, ("blocks",)),
    ("recurrent", "temporal", "out", "weight"): (1, ("channels",)),
    ("attention", "temporal", "qkv"): (0, ("heads", "key, value")),
    ("attention", "temporal", "out", "weight"): (1, ("heads",)),
}
"""The axis and its sections, by kind of layer and path in it. All shards have the rest: norms, and biases of sums."""
