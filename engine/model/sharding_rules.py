"""Sharding rules: the part of every parameter, and of the state, that each device of a mesh holds.

Only shapes and copies on the host are computed here. `roost.engine.model.collectives` says why each parameter is
sharded along the axis that its rule names.
"""

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from ...kernels import Backend
from ...kernels.matrices import QuantizedMatrix, is_quantized
from ...kernels.products import int8_shape_is_left_to_xla
from ..types.config import MODEL, MeshShape
from ..types.errors import ConfigError
from ..types.host_memory import HostArray
from .collectives import REPLICATED, SLOTS, WINDOWS
from .config import ModelConfig, ParamPath
from .griffin import Params, abstract_model
from .layer_kinds import LAYER_KINDS, AttentionState, LayerState, Rules, Segment, StateArray, kind_of
from .state import ModelState


@dataclass(frozen=True, slots=True)
class ShardingRule:
    """How an array is sharded over `model`.

    Attributes:
      segments: Consecutive parts of that axis, sharded one by one. Without segments the array is
        replicated.
      per: Number of the parameter's rows or columns, which the segments count, in one of the array's.
    """

    axis: int = 0
    segments: tuple[Segment, ...] = ()
    per: int = 1

    @property
    def partition_spec(self) -> PartitionSpec:
        """Partition spec of the global array."""
        return PartitionSpec(*[None] * self.axis, MODEL) if self.segments else REPLICATED

    def global_shape(self, shape: tuple[int, ...], num_shards: int) -> tuple[int, ...]:
        """Returns the shape of the global array, padding included, of a parameter of this shape."""
        count = num_shards * sum(segment.shard_size(num_shards) for segment in self.segments) // self.per
        return tuple(count if self.segments and axis == self.axis else n for axis, n in enumerate(shape))

    def splits_evenly(self, num_shards: int) -> bool:
        """Returns whether each shard begins between two of the array's rows or columns."""
        return all(segment.shard_size(num_shards) % self.per == 0 for segment in self.segments)

    def shard(self, whole: HostArray, index: int, num_shards: int) -> HostArray:
        """Returns the part of a parameter that shard `index` holds."""
        if not self.segments:
            return whole
        parts, start = [], 0
        for segment in self.segments:
            size = segment.shard_size(num_shards)
            first = min(index * size, segment.size) if segment.is_sharded(num_shards) else 0
            part = start + first, start + min(first + size, segment.size), size
            parts.append(self._padded_slice(whole, *(count // self.per for count in part)))
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
    rules, own = _RULES, path
    if path[0] == "blocks":
        rules, own = {**_MLP_RULES, **LAYER_KINDS[config.block_types[int(path[1])]].rules}, path[2:]
    axis, segments = rules.get(own, (0, ()))
    return ShardingRule(axis, tuple(segment(config) for segment in segments))


def quantized_rule(rule: ShardingRule, matrix: QuantizedMatrix) -> Any:
    """Returns the rule of each array of a quantised matrix, given the rule of the matrix.

    Every array has a row for each output. Arrays without an axis of inputs, such as the scales of int8, are sharded
    only with the outputs. A column of an array may stand for several inputs, as a scale of int4 does for a group.
    """

    def of_array(x: Any) -> ShardingRule:
        if rule.axis >= len(x.shape):
            return ShardingRule()
        return replace(rule, per=matrix.shape[rule.axis] // x.shape[rule.axis])

    return jax.tree.map(of_array, matrix)


def leaf_rules(path: tuple[Any, ...], leaf: Any, config: ModelConfig) -> Any:
    """Returns a `ShardingRule` for each array of a parameter.

    Args:
      path: Path of the parameter, as JAX's tree keys.
      leaf: Array or quantised matrix, or its shapes.
      config: The model's config.
    """
    rule = sharding_rule(tuple(key.key for key in path), config)
    return quantized_rule(rule, leaf) if is_quantized(leaf) else rule


def shard_params(abstract: Params, config: ModelConfig, mesh: MeshShape) -> tuple[Params, Params]:
    """Returns the shapes of the global parameters, padding included, and their partition specs.

    Args:
      abstract: Shapes of the unsharded parameters, from `abstract_model`.
      config: The model's config.
      mesh: Sizes of the mesh's axes.

    Raises:
      ConfigError: The mesh splits a group of inputs that share a scale.
    """
    rules = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf_rules(path, leaf, config), abstract, is_leaf=is_quantized
    )
    for path, rule in jax.tree_util.tree_leaves_with_path(rules):
        if not rule.splits_evenly(mesh.model):
            raise ConfigError(
                f"mesh model={mesh.model} splits groups of {rule.per} inputs, which share a scale in int4, in "
                f"{'.'.join(str(key.key) for key in path[:-1])}; use fewer devices along model, or quantize int8"
            )
    shapes = jax.tree.map(
        lambda rule, x: jax.ShapeDtypeStruct(rule.global_shape(x.shape, mesh.model), x.dtype), rules, abstract
    )
    return shapes, jax.tree.map(lambda rule: rule.partition_spec, rules)


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
    found: dict[str, str] = {}

    def note(path: tuple[Any, ...], spec: Any, shape: Any) -> None:
        if not is_quantized(shape):
            return
        names = itertools.zip_longest(shape.shape, spec.values)
        part = tuple(size // (mesh.model if name == MODEL else 1) for size, name in names)
        if int8_shape_is_left_to_xla(kernels, part):
            name = ".".join(str(key.key) for key in path[1:]).removesuffix(".weight")
            found[name] = " x ".join(map(str, part))

    # A native kernel's packed matrix stays one node, since the specs have one node in its place.
    jax.tree_util.tree_map_with_path(note, specs["blocks"], shapes["blocks"], is_leaf=is_quantized)
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


def state_partition_specs(state: ModelState) -> ModelState:
    """Returns the partition specs of a pool's state.

    Slots are sharded along `data`, and the channels of an array that has some along `model`. Windows are sharded by
    slots along both.
    """

    def layer(part: LayerState) -> LayerState:
        if isinstance(part, AttentionState):
            return jax.tree.map(lambda _: WINDOWS, part)
        return type(part)(*map(_array_spec, LAYER_KINDS[kind_of(part)].arrays, part))

    return tuple(map(layer, state))


def _array_spec(array: StateArray, x: Any) -> PartitionSpec:
    axes = [None] * array.slot_axis + [*SLOTS]
    if array.channels is None:
        return PartitionSpec(*axes)
    return PartitionSpec(*axes, *[None] * (x.ndim - len(axes) - 1), MODEL)


def _tokens(config: ModelConfig) -> Segment:
    return Segment(config.vocab_size)


def _hidden(config: ModelConfig) -> Segment:
    return Segment(config.mlp_width)


_MLP_RULES: Final[Rules] = {
    ("mlp", "gate_up", "weight"): (0, (_hidden, _hidden)),
    ("mlp", "gate_up", "bias"): (0, (_hidden, _hidden)),
    ("mlp", "down", "weight"): (1, (_hidden,)),
}
"""Sharded axis and its segments, by path in a layer of any kind; `LayerKind.rules` has the others. All
other parameters (norms, biases of sums over shards) are replicated."""

_RULES: Final[Rules] = {("embedding",): (0, (_tokens,))}
"""Rules of parameters outside layers."""
