"""Collectives between the devices of a mesh, and the partition specs of the arrays that the devices hold.

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

from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int32, Shaped

from ...kernels.row_groups import first_rows, with_first_rows
from ..types.config import DATA, MODEL, MeshShape


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
    part: Array = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(name) * size, size, axis)
    return part


def _all_gather(tree: Any, name: str, count: int, axis: int = 0) -> Any:
    if count == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, name, axis=axis, tiled=True), tree)


def _psum(x: Array, axes: tuple[str, ...]) -> Array:
    """Returns the sum of an array of any dtype, bool included."""
    wide = x.astype(jnp.int32) if x.dtype == jnp.bool else x
    total: Array = jax.lax.psum(wide, axes)
    return total.astype(x.dtype)
