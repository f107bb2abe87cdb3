"""How a model and its slots are cut over a mesh of devices, and what the shards say to each other.

A mesh has two axes. Along `model` every matrix is cut: the first product of a pair by its outputs (heads, channels of
the RG-LRU, of the MLP), the second by its inputs, so that a pair costs one sum over the shards; the embedding is cut by
tokens. Along `data` slots are cut. Steps run under `jax.shard_map`: each shard sees its own part of everything, runs
the kernels that one device runs, and says itself what it needs of others:

- a recurrent block and an MLP: one sum each. An embedding: one sum.
- attention over one token: heads are computed apart, but rings are cut by slots, over both axes, because the one head
  of keys and values that all queries share cannot be cut. So queries change hands twice, from "my heads of all rows" to
  "all heads of my rows" and back, and a ring is read by the one shard that has it; then the sum of the output product.
- attention over a chunk: the shard that has a row's ring gives it to all; each then computes its own heads.
- logits: as queries, from "my tokens of all rows" to "all tokens of my rows"; rows are sampled apart.

Heads, gate blocks, channels and tokens that don't divide are filled up with zeros, which stay zeros: 10 heads over 4
shards become 12. No other whole number of heads per shard is faster, since the shard with the most decides.

Letters in shapes: B rows of a data shard, M shards of the model.
"""

from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int32, Shaped

from ..core.mesh import DATA, MODEL, MeshShape


@dataclass(frozen=True, slots=True)
class Shards(MeshShape):
    """The sizes of the mesh's axes. Where both are 1 nothing is cut, and everything below does nothing.

    The methods are for the code of steps, under `jax.shard_map`.
    """

    def sum(self, parts: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
        """Over the model's shards."""
        return parts if self.model == 1 else jax.lax.psum(parts, MODEL)

    def to_rows(self, x: Any) -> Any:
        """From this shard's part of all rows, `[B, P, …]`, to all parts of this shard's rows, `[B/M, P*M, …]`."""
        return x if self.model == 1 else jax.lax.all_to_all(x, MODEL, 0, 1, tiled=True)

    def to_parts(self, x: Any) -> Any:
        """Undoes `to_rows`."""
        return x if self.model == 1 else jax.lax.all_to_all(x, MODEL, 1, 0, tiled=True)

    def own_rows(self, tree: Any) -> Any:
        """Of arrays `[B, …]` that all of the model's shards have, the rows of this one."""
        return tree if self.model == 1 else jax.tree.map(lambda x: _part(x, MODEL, self.model), tree)

    def all_rows(self, tree: Any) -> Any:
        """Undoes `own_rows`."""
        return _gather(tree, MODEL, self.model)

    def own_slots(self, tree: Any) -> Any:
        """Of arrays that every device has whole, the part of this data shard."""
        return tree if self.data == 1 else jax.tree.map(lambda x: _part(x, DATA, self.data), tree)

    def all_slots(self, tree: Any, axis: int = 0) -> Any:
        """Undoes `own_slots`."""
        return _gather(tree, DATA, self.data, axis)

    def all_channels(self, x: Array, count: int) -> Array:
        """From this shard's channels, which stand last, to all of them.

        Args:
          x: of this shard.
          count: of all, without those that they were filled up with.
        """
        if self.model == 1:
            return x
        whole: Array = _gather(x, MODEL, self.model, x.ndim - 1)
        return whole[..., :count]

    def own_channels(self, x: Array, count: int) -> Array:
        """Undoes `all_channels`.

        Args:
          x: all channels.
          count: of one shard; what `x` lacks is filled up with zeros.
        """
        if self.model == 1:
            return x
        filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, self.model * count - x.shape[-1])])
        return _part(filled, MODEL, self.model, x.ndim - 1)

    def first_slot(self, count: int) -> Int32[Array, ""] | int:
        """The first slot of this data shard, where each has `count`."""
        return 0 if self.data == 1 else jax.lax.axis_index(DATA) * count

    def first_ring(self, count: int) -> Int32[Array, ""] | int:
        """The slot of this device's first ring, where each device has `count`."""
        if self.count == 1:
            return 0
        return (jax.lax.axis_index(DATA) * self.model + jax.lax.axis_index(MODEL)) * count

    def first_token(self, count: int) -> Int32[Array, ""] | int:
        """The first token of this shard's part of the vocabulary, where each has `count`."""
        return 0 if self.model == 1 else jax.lax.axis_index(MODEL) * count

    def share_slots(self, tree: Any) -> Any:
        """What one data shard has and the others have zeros for, for all of them."""
        return tree if self.data == 1 else jax.tree.map(lambda x: _sum(x, (DATA,)), tree)

    def share_rings(self, tree: Any, *, over_data: bool) -> Any:
        """What one device has and the others have zeros for, for the model's shards or for all devices."""
        axes = (DATA, MODEL) if over_data else (MODEL,)
        return tree if self.count == 1 else jax.tree.map(lambda x: _sum(x, axes), tree)

    def any(self, flags: Bool[Array, "*shape"]) -> Bool[Array, ""]:
        """Whether one is set on any device: a branch in which shards talk must be taken by all of them."""
        here = jnp.any(flags)
        return here if self.count == 1 else jax.lax.pmax(here.astype(jnp.int32), (DATA, MODEL)) > 0


ALONE: Final = Shards()
"""One device."""

SLOTS: Final = PartitionSpec(DATA)
"""Of arrays with a row for each slot."""

RINGS: Final = PartitionSpec((DATA, MODEL))
EVERYWHERE: Final = PartitionSpec()


def _part(x: Array, name: str, count: int, axis: int = 0) -> Array:
    size = x.shape[axis] // count
    part: Array = jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(name) * size, size, axis)
    return part


def _gather(tree: Any, name: str, count: int, axis: int = 0) -> Any:
    if count == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.all_gather(x, name, axis=axis, tiled=True), tree)


def _sum(x: Array, axes: tuple[str, ...]) -> Array:
    """Of any type: flags too."""
    wide = x.astype(jnp.int32) if x.dtype == jnp.bool else x
    total: Array = jax.lax.psum(wide, axes)
    return total.astype(x.dtype)
