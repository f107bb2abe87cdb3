"""A model over the devices of a mesh: collectives, and the part of parameters and states that each device holds.

A mesh has two axes. Along `model` every matrix is sharded: the first of a pair of products by its outputs (heads,
RG-LRU channels, MLP channels), the second by its inputs, so that a pair costs one psum. The embedding is sharded by
tokens. Along `data` slots are sharded. Steps run under `jax.shard_map`: each device sees its own shard of everything,
runs the kernels that a single device would run, and calls collectives where it needs what others hold:

- A recurrent block, an MLP and an embedding lookup take one psum each.
- Attention of one token per row computes heads apart, but windows are sharded by slots over both axes, because a
  key and value head that all queries share cannot be sharded. An all-to-all turns "this shard's heads of all rows"
  into "all heads of this shard's rows", so that each window is read by the one device that holds it; a second one
  turns the outputs back. The output projection adds a psum. Keys and values of several heads that divide evenly are
  computed by heads, and join the first all-to-all; otherwise each shard computes all of them.
- Attention over a chunk: a psum hands a row's window to all devices, and each computes its own heads. Keys and values
  that are computed by heads are gathered first.
- Logits take an all-to-all, from "this shard's tokens of all rows" to "all tokens of this shard's rows". Each shard
  then samples its rows.

Heads, gate blocks, channels and tokens that do not divide evenly are padded with zeros, which stay zeros: 10 heads over
4 shards become 12. No other whole number of heads per shard is faster, because a step waits for the largest shard.

Letters in shapes: B rows of a data shard, M devices along `model`, P this shard's part of an axis.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int32, Shaped

from ...kernels.arithmetic import first_rows, with_first_rows
from ...kernels.matrices import QuantizedMatrix, is_quantized
from ..types.config import DATA, MODEL, MeshShape
from ..types.errors import ConfigError
from ..types.host_memory import HostArray
from .config import ModelConfig, ParamPath, Params
from .layer_kinds import LAYER_KINDS, AttentionState, LayerState, Rules, Segment, StateArray, kind_of
from .state import ModelState


@dataclass(frozen=True, slots=True)
class Collectives(MeshShape):
    """Collectives of a mesh of this shape, called under `jax.shard_map`.

    Along an axis of size 1 every method returns its argument, so that a single device needs no mesh.
    """

    def psum(self, x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """Returns the sum over `model`."""
        return x if self.model == 1 else jax.lax.psum(x, MODEL)

    def all_to_all(self, x: Any, split_axis: int, concat_axis: int) -> Any:
        """Splits an array along one axis over `model` and concatenates the received parts along another.

        Args:
          x: Array whose size along `split_axis` is a multiple of M.
          split_axis: Axis that is sharded afterwards.
          concat_axis: Axis that is sharded before, and whole afterwards.
        """
        return x if self.model == 1 else jax.lax.all_to_all(x, MODEL, split_axis, concat_axis, tiled=True)

    def local_rows(self, tree: Any) -> Any:
        """Returns this device's part, `[B / M, …]`, of arrays `[B, …]` that are replicated over `model`."""
        return tree if self.model == 1 else jax.tree.map(lambda x: _local_part(x, MODEL, self.model), tree)

    def first_rows(self, x: Shaped[Array, "*slots"], rows: int, axis: int = 0) -> Shaped[Array, "*rows"]:
        """Returns rows of the first slots of each device along `model`, which hold blocks of slots of equal size.

        Args:
          x: Array with a row for each slot of this data shard.
          rows: Number of rows to return, a multiple of M.
        """
        return first_rows(x, rows, self.model, axis)

    def with_first_rows(
        self, x: Shaped[Array, "*slots"], new: Shaped[Array, "*rows"], axis: int = 0
    ) -> Shaped[Array, "*slots"]:
        """Returns an array with the rows that `first_rows` returns replaced by others; the rest is not copied."""
        return with_first_rows(x, new, self.model, axis)

    def all_gather_rows(self, tree: Any) -> Any:
        """Gathers the parts that `local_rows` returns, over `model`."""
        return _all_gather(tree, MODEL, self.model)

    def local_slots(self, tree: Any) -> Any:
        """Returns this data shard's part of replicated arrays that have a row per slot."""
        return tree if self.data == 1 else jax.tree.map(lambda x: _local_part(x, DATA, self.data), tree)

    def all_gather_slots(self, tree: Any, axis: int = 0) -> Any:
        """Gathers the rows of all data shards along `axis`."""
        return _all_gather(tree, DATA, self.data, axis)

    def all_gather_channels(self, x: Array, count: int) -> Array:
        """Gathers channels, the last axis, over `model`.

        Args:
          x: This shard's channels.
          count: Number of channels of the model; the padding behind them is dropped.
        """
        if self.model == 1 or not x.size:  # XLA gathers no empty arrays
            return x
        gathered: Array = _all_gather(x, MODEL, self.model, x.ndim - 1)
        return gathered[..., :count]

    def local_channels(self, x: Array, count: int) -> Array:
        """Returns this shard's channels, the last axis, of a replicated array.

        Args:
          x: All channels of the model.
          count: Number of channels of a shard; missing ones are zeros.
        """
        if self.model == 1:
            return x
        padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self.model * count - x.shape[-1])])
        return _local_part(padded, MODEL, self.model, x.ndim - 1)

    def slot_offset(self, count: int) -> Int32[Array, ""] | int:
        """Returns the first slot of this data shard, where each holds `count`."""
        return 0 if self.data == 1 else jax.lax.axis_index(DATA) * count

    def window_offset(self, count: int) -> Int32[Array, ""] | int:
        """Returns the slot of this device's first window, where each device holds `count` windows of a layer."""
        if self.count == 1:
            return 0
        return (jax.lax.axis_index(DATA) * self.model + jax.lax.axis_index(MODEL)) * count

    @property
    def shard_index(self) -> Int32[Array, ""] | int:
        """Index of this device along `model`."""
        return 0 if self.model == 1 else jax.lax.axis_index(MODEL)

    def token_offset(self, count: int) -> Int32[Array, ""] | int:
        """Returns the first token id of this shard's part of the vocabulary, where each holds `count`."""
        return self.shard_index * count

    def psum_slots(self, tree: Any) -> Any:
        """Hands arrays that are zeros on all data shards but one to all of them."""
        return tree if self.data == 1 else jax.tree.map(lambda x: _psum(x, (DATA,)), tree)

    def psum_windows(self, tree: Any, *, over_data: bool) -> Any:
        """Hands arrays that are zeros on all devices but one to all devices along `model`, or of the whole mesh."""
        axes = (DATA, MODEL) if over_data else (MODEL,)
        return tree if self.count == 1 else jax.tree.map(lambda x: _psum(x, axes), tree)

    def any_device(self, flags: Bool[Array, "*shape"]) -> Bool[Array, ""]:
        """Returns whether a flag is set on any device: all devices must take a branch that calls collectives."""
        here = jnp.any(flags)
        return here if self.count == 1 else jax.lax.pmax(here.astype(jnp.int32), (DATA, MODEL)) > 0


SLOTS: Final = PartitionSpec(DATA)
"""Partition spec of arrays with a row for each slot."""

WINDOWS: Final = PartitionSpec((DATA, MODEL))
"""Partition spec of windows: slots over the whole mesh."""

REPLICATED: Final = PartitionSpec()
"""Partition spec of what every device holds whole."""


def _local_part(x: Array, name: str, count: int, axis: int = 0) -> Array:
    size = x.shape[axis] // count
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(name) * size, size, axis)


def _all_gather(tree: Any, name: str, count: int, axis: int = 0) -> Any:
    if count == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, name, axis=axis, tiled=True), tree)


def _psum(x: Array, axes: tuple[str, ...]) -> Array:
    """Returns the sum of an array of any dtype, bool included."""
    wide = x.astype(jnp.int32) if x.dtype == jnp.bool else x
    total: Array = jax.lax.psum(wide, axes)
    return total.astype(x.dtype)


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
