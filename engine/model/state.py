"""The recurrent state of a batch of rows: a plain pytree of fixed size, whatever the length of the text behind it.

A pool of slots is one state or several, groups, whose rows follow one another: a step that needs only the first slots
then takes the first groups, and nobody has to cut them out of a larger array.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from ...kernels.window_attention import Blocks, join_ring, split_ring
from .collectives import Collectives
from .config import ModelConfig


class RecurrentState(NamedTuple):
    """Of a recurrent block: h after the last token, and the convolution's last K - 1 inputs, oldest first.

    The rows of `conv` stand second: a tap is then one contiguous `[B, E]` array on a TPU.
    """

    h: Float32[Array, "B E"]
    conv: Float[Array, "K1 B E"]


class AttentionState(NamedTuple):
    """Of an attention block: keys (after RoPE) and values of the last W tokens, of each group of rows."""

    rings: tuple[Blocks, ...]


class RecurrentBlockStates(NamedTuple):
    """State of a recurrent layer at every block boundary of a chunk; padding changes nothing."""

    h: Float32[Array, "B M E"]
    conv: Float[Array, "B M K1 E"]


class ChunkKeyValues(NamedTuple):
    """Keys (after RoPE) and values of a chunk's tokens."""

    k: Float[Array, "B T d"]
    v: Float[Array, "B T d"]


class BlockStates(NamedTuple):
    """States of a chunk at every block boundary and at its end, so that they can be restored.

    Axes: M blocks of a chunk, L recurrent layers, A attention layers.

    Attributes:
      h, conv: Recurrent state after each block.
      window: Keys and values of each token.
    """

    h: Float32[Array, "B M L E"]
    conv: Float[Array, "B M L K1 E"]
    window: Float[Array, "B T A 2 d"]


type LayerState = RecurrentState | AttentionState
type LayerBlockStates = RecurrentBlockStates | ChunkKeyValues
type ModelState = tuple[LayerState, ...]


def zero_state(
    config: ModelConfig, rows: int, dtype: jnp.dtype, blocks: Sequence[int] = (), channels: int | None = None
) -> ModelState:
    """The state before the first token.

    Args:
      config: the model's shape.
      rows: of one group.
      dtype: the activations' type.
      blocks: rows of each block that the rings are cut into; none for whole rings.
      channels: of a recurrent layer, where they are more than the model's.
    """
    width = config.lru_width if channels is None else channels

    def layer(block: str) -> LayerState:
        if block == "attention":
            shapes = [(rows, size, config.head_dim) for size in blocks or [config.window]]
            return AttentionState((tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes),))
        h = jnp.zeros((rows, width), jnp.float32)
        return RecurrentState(h, jnp.zeros((config.conv_width - 1, rows, width), dtype))

    return tuple(layer(block) for block in config.block_types)


def num_rows(state: ModelState) -> int:
    """How many rows a group has."""
    first = state[0]
    return first.h.shape[0] if isinstance(first, RecurrentState) else first.rings[0][0][0].shape[0]


def join(groups: Sequence[ModelState]) -> ModelState:
    """Groups as one state; rings stay where they are."""

    def layer(*parts: LayerState) -> LayerState:
        if isinstance(parts[0], AttentionState):
            return AttentionState(tuple(rings for part in parts for rings in part.rings))  # type: ignore[union-attr]
        joined: LayerState = jax.tree.map(lambda axis, *x: jnp.concatenate(x, axis), _AXES, *parts)
        return joined

    return groups[0] if len(groups) == 1 else tuple(layer(*parts) for parts in zip(*groups, strict=True))


def split(state: ModelState, sizes: Sequence[int]) -> tuple[ModelState, ...]:
    """Undoes `join`: groups of these numbers of rows."""

    def group(index: int, start: int, size: int) -> ModelState:
        def layer(whole: LayerState) -> LayerState:
            if isinstance(whole, AttentionState):
                return AttentionState((whole.rings[index],))
            part: LayerState = jax.tree.map(
                lambda axis, x: jax.lax.slice_in_dim(x, start, start + size, axis=axis), _AXES, whole
            )
            return part

        return tuple(layer(whole) for whole in state)

    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if len(sizes) == 1:
        return (state,)
    return tuple(group(i, start, size) for i, (start, size) in enumerate(zip(starts, sizes, strict=True)))


def join_block_states(layers: Sequence[LayerBlockStates | None], block: int) -> BlockStates:
    """Stacks the block states of all layers by kind; a kind without layers is an axis of length 0."""
    recurrent = [layer for layer in layers if isinstance(layer, RecurrentBlockStates)]
    attention = [layer for layer in layers if isinstance(layer, ChunkKeyValues)]
    windows = [jnp.stack([layer.k, layer.v], axis=2) for layer in attention]
    if not recurrent:
        rows, steps = windows[0].shape[:2]
        empty = jnp.zeros((rows, steps // block, 0, 0))
        return BlockStates(empty, empty[..., None], jnp.stack(windows, axis=2))
    h, conv = (jnp.stack(parts, axis=2) for parts in zip(*recurrent, strict=True))
    if not attention:
        return BlockStates(h, conv, jnp.zeros((h.shape[0], h.shape[1] * block, 0, 2, 0), conv.dtype))
    return BlockStates(h, conv, jnp.stack(windows, axis=2))


def as_state(
    like: ModelState,
    h: Float32[Array, "L E"],
    conv: Float[Array, "L K1 E"],
    ring: Float[Array, "W A 2 d"],
    shards: Collectives,
) -> ModelState:
    """One row of state, with a whole ring, from the arrays of a snapshot.

    Args:
      like: a state of the same layers.
      h, conv: see `BlockStates`.
      ring: keys and values by row of the ring.
      shards: of which each gets its own channels.
    """
    recurrent, attention = iter(range(h.shape[0])), iter(range(ring.shape[1]))
    local = next((layer.h.shape[1] for layer in like if isinstance(layer, RecurrentState)), 0)
    h, conv = (shards.local_channels(x, local) for x in (h, conv))

    def layer(kind: LayerState) -> LayerState:
        if isinstance(kind, AttentionState):
            at = next(attention)
            return AttentionState((((ring[None, :, at, 0], ring[None, :, at, 1]),),))
        at = next(recurrent)
        return RecurrentState(h[at, None], conv[at, :, None])

    return tuple(map(layer, like))


def as_arrays(
    state: ModelState, shards: Collectives, channels: int
) -> tuple[Float32[Array, "L E"], Float[Array, "L K1 E"], Float[Array, "W A 2 d"]]:
    """Undoes `as_state`; a kind of which there is no layer is an axis of length 0.

    Args:
      state: one row.
      shards: each of which has its own channels.
      channels: of all of them.
    """
    recurrent = [layer for layer in state if isinstance(layer, RecurrentState)]
    rings = [layer.rings[0][0] for layer in state if isinstance(layer, AttentionState)]
    h = jnp.stack([layer.h[0] for layer in recurrent]) if recurrent else jnp.zeros((0, 0))
    conv = jnp.stack([layer.conv[:, 0] for layer in recurrent]) if recurrent else jnp.zeros((0, 1, 0))
    h, conv = (shards.all_gather_channels(x, channels) for x in (h, conv))
    pairs = [jnp.stack([keys[0], values[0]], axis=1) for keys, values in rings]
    return h, conv, jnp.stack(pairs, axis=1) if pairs else jnp.zeros((1, 0, 2, 0), conv.dtype)


def gather_rows(
    groups: Sequence[ModelState],
    rows: Int32[Array, " R"],
    fresh: Bool[Array, " R"],
    shards: Collectives | None = None,
    *,
    from_all: bool = False,
) -> ModelState:
    """Copies the rows named, as one group with whole rings; a fresh one, or one past the end, is all zeros.

    Args:
      groups: the pool.
      rows: of the pool.
      fresh: those that are not copied.
      shards: the pool's; each gets its own channels, and the rings of all.
      from_all: rows of any data shard, not only of this one.
    """
    axes, starts, shards = _row_axes(groups[0]), _starts(groups), shards or Collectives()

    def read(group: ModelState, row: Array) -> ModelState:
        state: ModelState = jax.tree.map(lambda axis, x: _row(x, row, axis), axes, group)
        return _map_rings(lambda blocks: (join_ring(blocks),), state)

    def take(row: Array, fresh: Array) -> ModelState:
        """Of several groups, only the one that has the row is read."""
        if len(groups) == 1:
            local = _local_rows(groups, row, shards)
            state: ModelState = jax.tree.map(partial(_row_if_here, fresh), axes, local, groups[0])
            return _map_rings(lambda blocks: (join_ring(blocks),), state)
        place = jnp.where(fresh, len(groups), jnp.sum(row >= jnp.array(starts[1:])))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(read, groups[0], row))
        branches = [partial(read, group, row - start) for group, start in zip(groups, starts, strict=False)]
        taken: ModelState = jax.lax.switch(place, [*branches, lambda: zeros])
        return taken

    if rows.shape[0] == 1:
        taken = take(rows[0], fresh[0])
    else:
        stacked = jax.lax.map(lambda item: take(*item), (rows, fresh))
        taken = jax.tree.map(
            lambda axis, x: jnp.moveaxis(jnp.squeeze(x, 1 + axis), 0, axis), _row_axes(stacked), stacked
        )
    return tuple(_shared(layer, shards, from_all=from_all) for layer in taken)


def _shared(layer: LayerState, shards: Collectives, *, from_all: bool) -> LayerState:
    """Rows that one device has and the others have zeros for."""
    shared: LayerState
    if isinstance(layer, AttentionState):
        shared = shards.psum_rings(layer, over_data=from_all)
    else:
        shared = shards.psum_slots(layer) if from_all else layer
    return shared


def scatter_rows(
    groups: Sequence[ModelState], rows: Int32[Array, " R"], new: ModelState, shards: Collectives | None = None
) -> tuple[ModelState, ...]:
    """Writes the rows named, one slice each, so that donated groups are updated in place; rows past the end are not,
    nor those of another shard.

    Args:
      groups: the pool.
      rows: of the pool.
      new: as `gather_rows` gives it.
      shards: the pool's.
    """
    axes, pieces = _row_axes(groups[0]), _map_rings(lambda b: split_ring(b[0], _block_sizes(groups[0])), new)
    local, starts = _local_rows(groups, rows, shards or Collectives()), _starts(groups)

    def put(i: Any, groups: tuple[ModelState, ...]) -> tuple[ModelState, ...]:
        def put_group(group: ModelState, start: int) -> ModelState:
            written: ModelState = jax.tree.map(
                lambda axis, rows, old, new: _put_row(axis, start, old, new, rows[i], i), axes, local, group, pieces
            )
            return written

        return tuple(put_group(group, start) for group, start in zip(groups, starts, strict=False))

    if rows.shape[0] == 1:
        return put(0, tuple(groups))
    written: tuple[ModelState, ...] = jax.lax.fori_loop(0, rows.shape[0], put, tuple(groups))
    return written


def copy_rows(
    groups: Sequence[ModelState],
    sources: Int32[Array, " R"],
    targets: Int32[Array, " R"],
    shards: Collectives | None = None,
) -> tuple[ModelState, ...]:
    """Copies rows onto others, in place if donated; all are read before any is written.

    A copy is a fork: both rows go on from the same text, each on its own.
    """
    taken = gather_rows(groups, sources, jnp.zeros(sources.shape, jnp.bool), shards, from_all=True)
    return scatter_rows(groups, targets, taken, shards)


@partial(jax.jit, static_argnames=("axis", "start"))  # so that arrays that are alike are traced once
def _put_row(
    axis: int, start: int, old: Array, new: Array, row: Int32[Array, ""], source: Int32[Array, ""] | int
) -> Array:
    """`old`, whose first row is the pool's `start`, with the pool's row replaced by row `source` of `new`."""
    local = row - start
    inside = (local >= 0) & (local < old.shape[axis])
    value = jnp.where(inside, _row(new, source, axis), _row(old, local, axis))
    return jax.lax.dynamic_update_slice_in_dim(old, value, local, axis)


def _starts(groups: Sequence[ModelState]) -> list[int]:
    """Which row of the pool each group begins with, and where the last one ends."""
    return [0, *accumulate(num_rows(group) for group in groups)]


_AXES = RecurrentState(h=0, conv=1)  # type: ignore[arg-type]
"""Where the rows of a recurrent state stand."""


def _row_axes(state: ModelState) -> Any:
    """Where the rows of each array stand."""
    return tuple(_AXES if isinstance(s, RecurrentState) else jax.tree.map(lambda _: 0, s) for s in state)


def _local_rows(groups: Sequence[ModelState], rows: Int32[Array, "*R"], shards: Collectives) -> Any:
    """For each array, where the rows of the pool stand in what this device has of it; others stand outside."""
    if shards.count == 1:
        return jax.tree.map(lambda _: rows, groups[0])
    (state,) = groups

    def layer(part: LayerState) -> Any:
        is_ring = isinstance(part, AttentionState)
        first = (shards.ring_offset if is_ring else shards.slot_offset)(num_rows((part,)))
        return jax.tree.map(lambda _: rows - first, part)

    return tuple(map(layer, state))


def _block_sizes(state: ModelState) -> tuple[int, ...]:
    """How its rings are cut."""
    rings = [blocks for layer in state if isinstance(layer, AttentionState) for blocks in layer.rings]
    return tuple(keys.shape[1] for keys, _ in rings[0]) if rings else ()


def _map_rings(change: Callable[[Blocks], Blocks], state: ModelState) -> ModelState:
    def layer(s: LayerState) -> LayerState:
        return AttentionState(tuple(map(change, s.rings))) if isinstance(s, AttentionState) else s

    return tuple(layer(s) for s in state)


def _row_if_here(fresh: Bool[Array, ""], axis: int, row: Int32[Array, ""], x: Array) -> Array:
    """One row; zeros where it is fresh or stands outside."""
    taken = _row(x, row, axis)
    return jnp.where((row >= 0) & (row < x.shape[axis]) & ~fresh, taken, jnp.zeros_like(taken))


def _row(x: Array, row: Int32[Array, ""] | int, axis: int) -> Array:
    """One row; where there is none, another."""
    return jax.lax.dynamic_slice_in_dim(x, row, 1, axis)
