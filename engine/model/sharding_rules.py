"""Sharding rules: the part of every parameter, and of the state, that each device of a mesh holds.

Only shapes and copies on the host are computed here. `roost.engine.model.collectives` says why each parameter is
sharded along the axis named in `_RULES`.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ...kernels import Backend, int8_product
from ..core.arrays import HostArray
from ..core.mesh import MODEL, MeshShape
from .collectives import REPLICATED, RINGS, SLOTS
from .config import ModelConfig, ParamPath
from .griffin import Params, abstract_model
from .quantization import QuantizedMatrix, is_quantized
from .state import AttentionState, ModelState, RecurrentState


@dataclass(frozen=True, slots=True)
class Segment:
    """Adjacent rows or columns of a parameter that are sharded together.

    Attributes:
      size: Number of rows or columns.
      unit: Size of what is never split, such as a head or a gate block.
      is_sharded: False where every shard holds the whole segment.
    """

    size: int
    unit: int = 1
    is_sharded: bool = True

    def shard_size(self, num_shards: int) -> int:
        """Returns the rows or columns of a shard, padding included."""
        return -(-self.size // self.unit // num_shards) * self.unit if self.is_sharded else self.size


@dataclass(frozen=True, slots=True)
class ShardingRule:
    """How an array is sharded over `model`.

    Attributes:
      axis: The axis that is sharded.
      segments: Consecutive parts of that axis, each of which is sharded by itself. Without segments the array is
        replicated.
    """

    axis: int = 0
    segments: tuple[Segment, ...] = ()

    @property
    def partition_spec(self) -> PartitionSpec:
        """Partition spec of the global array."""
        return PartitionSpec(*[None] * self.axis, MODEL) if self.segments else REPLICATED

    def global_shape(self, shape: tuple[int, ...], num_shards: int) -> tuple[int, ...]:
        """Returns the shape of the global array, padding included, of a parameter of this shape."""
        count = num_shards * sum(segment.shard_size(num_shards) for segment in self.segments)
        return tuple(count if self.segments and axis == self.axis else n for axis, n in enumerate(shape))

    def shard(self, whole: HostArray, index: int, num_shards: int) -> HostArray:
        """Returns the part of a parameter that shard `index` holds."""
        if not self.segments:
            return whole
        parts, start = [], 0
        for segment in self.segments:
            size = segment.shard_size(num_shards)
            first = min(index * size, segment.size) if segment.is_sharded else 0
            parts.append(self._padded_slice(whole, start + first, start + min(first + size, segment.size), size))
            start += segment.size
        return parts[0] if len(parts) == 1 else np.concatenate(parts, self.axis)

    def _padded_slice(self, whole: HostArray, start: int, stop: int, size: int) -> HostArray:
        """Returns `start` to `stop` along the axis, padded with zeros to `size`."""
        part = whole[(slice(None),) * self.axis + (slice(start, stop),)]
        missing = size - (stop - start)
        widths = [(0, missing if axis == self.axis else 0) for axis in range(whole.ndim)]
        return np.pad(part, widths) if missing else part


def sharding_rule(path: ParamPath, config: ModelConfig) -> ShardingRule:
    """Returns the rule of a parameter, or of its int8 values if it is quantised."""
    kind = (config.block_types[int(path[1])],) if path[0] == "blocks" else ()
    axis, names = _RULES.get((*kind, *path[2:]) if kind else path, (0, ()))
    segments = _segments(config)
    return ShardingRule(axis, tuple(segments[name] for name in names))


def quantized_rule(values: ShardingRule) -> QuantizedMatrix:
    """Returns the rules of a quantised matrix's values and scales; the scales of its outputs go with the outputs."""
    return QuantizedMatrix(values, values if values.axis == 0 else ShardingRule())


def leaf_rules(path: tuple[Any, ...], leaf: Any, config: ModelConfig) -> Any:
    """Returns a `ShardingRule` for each array of a parameter.

    Args:
      path: Path of the parameter, as JAX's tree keys.
      leaf: Array or quantised matrix, or its shapes.
      config: The model's config.
    """
    rule = sharding_rule(tuple(key.key for key in path), config)
    return quantized_rule(rule) if isinstance(leaf, QuantizedMatrix) else rule


def shard_params(abstract: Params, config: ModelConfig, mesh: MeshShape) -> tuple[Params, Params]:
    """Returns the shapes of the global parameters, padding included, and their partition specs.

    Args:
      abstract: Shapes of the unsharded parameters, from `abstract_model`.
      config: The model's config.
      mesh: Sizes of the mesh's axes.
    """
    rules = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf_rules(path, leaf, config), abstract, is_leaf=is_quantized
    )
    shapes = jax.tree.map(
        lambda rule, x: jax.ShapeDtypeStruct(rule.global_shape(x.shape, mesh.model), x.dtype), rules, abstract
    )
    return shapes, jax.tree.map(lambda rule: rule.partition_spec, rules)


def padded_lru_width(config: ModelConfig, mesh: MeshShape) -> int:
    """Returns the RG-LRU channels of all shards together, padding included."""
    return mesh.model * _segments(config)["channels"].shard_size(mesh.model)


def bytes_per_device(shapes: Params, specs: Params, mesh: MeshShape) -> int:
    """Returns the bytes of parameters that each device holds.

    Args:
      shapes: Global shapes, from `shard_params`.
      specs: Their partition specs.
      mesh: Sizes of the mesh's axes.
    """
    sizes = jax.tree.map(
        lambda x, spec: x.size * x.dtype.itemsize // (1 if spec == REPLICATED else mesh.model), shapes, specs
    )
    return sum(jax.tree.leaves(sizes))


def matrices_without_kernel(shapes: Params, specs: Params, mesh: MeshShape, kernels: Backend) -> dict[str, str]:
    """Returns names of int8 matrices, and sizes of their parts on each device, that XLA multiplies despite a kernel.

    The embedding is not among them: its products are XLA's on every backend.

    Args:
      shapes: Global shapes, from `shard_params`.
      specs: Their partition specs.
      mesh: Sizes of the mesh's axes.
      kernels: Backend of the products; one without a kernel for them has no such matrices.
    """
    if kernels.int8_product is None:
        return {}
    found = {}
    for (path, shape), spec in zip(
        jax.tree_util.tree_leaves_with_path(shapes["blocks"], is_leaf=is_quantized),
        jax.tree.leaves(specs["blocks"], is_leaf=is_quantized),
        strict=True,
    ):
        if isinstance(shape, QuantizedMatrix):
            part = tuple(
                size // (mesh.model if name == MODEL else 1)
                for size, name in itertools.zip_longest(shape.shape, spec.values)
            )
            if not int8_product.has_kernel(kernels, part):
                name = ".".join(str(key.key) for key in path[1:]).removesuffix(".weight")
                found[name] = " x ".join(map(str, part))
    return found


def weight_bytes(config: ModelConfig, mesh: MeshShape, dtype: str, matrix_dtype: str | None = None) -> int:
    """Returns the bytes of all parameters on each device.

    Args:
      config: The model's config.
      mesh: Sizes of the mesh's axes.
      dtype: Dtype of the activations, and of gate matrices.
      matrix_dtype: Dtype of the other matrices; None means `dtype`.
    """
    return bytes_per_device(*shard_params(_unsharded_params(config, dtype, matrix_dtype), config, mesh), mesh)


@lru_cache(maxsize=8)
def _unsharded_params(config: ModelConfig, dtype: str, matrix_dtype: str | None) -> Params:
    """Returns the shapes of all parameters, unsharded; tracing them takes a second, and a mesh changes none of them."""
    matrices = None if matrix_dtype is None else jnp.dtype(matrix_dtype)
    return abstract_model(config, jnp.dtype(dtype), matrix_dtype=matrices)[1]


def slot_bytes(config: ModelConfig, mesh: MeshShape, dtype_bytes: int) -> int:
    """Returns the bytes of one slot's state, padding included.

    With as many slots as the mesh has devices, this is what each device holds: a part of every recurrent state, and one
    whole set of rings.
    """
    padded = replace(config, lru_width=padded_lru_width(config, mesh), num_heads=1, width=config.head_dim)
    return padded.state_bytes(dtype_bytes)


def state_partition_specs(state: ModelState) -> ModelState:
    """Returns the partition specs of a pool's state.

    Slots are sharded along `data`, RG-LRU channels along `model`, and rings by slots along both.
    """

    def layer(state: Any) -> Any:
        if isinstance(state, AttentionState):
            return jax.tree.map(lambda _: RINGS, state)
        return RecurrentState(PartitionSpec(*SLOTS, MODEL), PartitionSpec(None, *SLOTS, MODEL))  # type: ignore[arg-type]

    return tuple(map(layer, state))


def _segments(config: ModelConfig) -> Mapping[str, Segment]:
    return {
        "tokens": Segment(config.vocab_size),
        "channels": Segment(config.lru_width, config.lru_width // config.num_heads),
        "gate blocks": Segment(config.num_heads),
        "hidden": Segment(config.mlp_width),
        "heads": Segment(config.width, config.head_dim),
        "key, value": Segment(2 * config.head_dim, is_sharded=False),
    }


_MLP: Final[Mapping[tuple[str, ...], tuple[int, tuple[str, ...]]]] = {
    ("mlp", "gate_up", "weight"): (0, ("hidden", "hidden")),
    ("mlp", "gate_up", "bias"): (0, ("hidden", "hidden")),
    ("mlp", "down", "weight"): (1, ("hidden",)),
}

_RULES: Final[Mapping[tuple[str | int, ...], tuple[int, tuple[str, ...]]]] = {
    ("embedding",): (0, ("tokens",)),
    **{(kind, *path): rule for kind in ("recurrent", "attention") for path, rule in _MLP.items()},
    ("recurrent", "temporal", "xy", "weight"): (0, ("channels", "channels")),
    ("recurrent", "temporal", "xy", "bias"): (0, ("channels", "channels")),
    ("recurrent", "temporal", "conv_weight"): (1, ("channels",)),
    ("recurrent", "temporal", "conv_bias"): (0, ("channels",)),
    ("recurrent", "temporal", "rg_lru", "a_param"): (0, ("channels",)),
    ("recurrent", "temporal", "rg_lru", "gate_weight"): (0, ("gate blocks",)),
    ("recurrent", "temporal", "rg_lru", "gate_bias"): (0, ("gate blocks",)),
    ("recurrent", "temporal", "out", "weight"): (1, ("channels",)),
    ("attention", "temporal", "qkv"): (0, ("heads", "key, value")),
    ("attention", "temporal", "out", "weight"): (1, ("heads",)),
}
"""Sharded axis and its segments, by kind of layer and path in it. All other parameters (norms, biases of sums over
shards) are replicated."""
