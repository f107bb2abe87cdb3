"""Several positions of several rows, packed as pairs, and the states of a layer after each, of which one is kept.

Letters in shapes: B rows, S positions, E RG-LRU channels, K taps of the convolution; R rows, M pairs. Each key head
of a window has separate rows, as in kernels.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped

from ...kernels.window_attention import (
    Blocks,
    Vectors,
    for_each_head,
    heads_as_rows,
    num_key_heads,
    put_tokens,
    read_blocks,
    rows_as_heads,
    write_blocks,
    zero_ring,
)
from .layer_kinds import AttentionState, RecurrentState


class Pairs(NamedTuple):
    """Pairs of a row and a position, row by row, and the row's positions in rising order. Padding comes last.

    Attributes:
      rows: Row of each pair; R in padding.
      offsets: Offset of each pair from its row's first position; 0 in padding, whose pairs are so all equal.
      starts: Index of each row's first pair.
      counts: Number of pairs of each row; 0 for idle rows.
    """

    rows: Int32[Array, " M"]
    offsets: Int32[Array, " M"]
    starts: Int32[Array, " R"]
    counts: Int32[Array, " R"]

    @classmethod
    def of(cls, counts: Int32[Array, " R"], size: int) -> "Pairs":
        """Returns the pairs of rows with these numbers of positions, whose sum is at most `size`."""
        ends, places = jnp.cumsum(counts), jnp.arange(size, dtype=jnp.int32)
        starts = ends - counts
        rows = jnp.sum(ends <= places[:, None], axis=1, dtype=jnp.int32)
        offsets = places - starts[jnp.minimum(rows, len(counts) - 1)]
        return cls(rows, jnp.where(rows < len(counts), offsets, 0), starts, counts)

    @property
    def is_used(self) -> Bool[Array, " M"]:
        """Whether each pair holds a token, rather than padding."""
        return self.rows < self.counts.shape[0]

    @property
    def depth(self) -> Int32[Array, ""]:
        """Largest number of pairs of a row."""
        return jnp.max(self.counts)

    def of_rows(self, x: Shaped[Array, "R *rest"]) -> Shaped[Array, "M *rest"]:
        """Returns the row of each pair; any row in padding."""
        return x[jnp.minimum(self.rows, x.shape[0] - 1)]

    def of_offsets(self, x: Shaped[Array, "S R *rest"]) -> Shaped[Array, "M *rest"]:
        """Returns the value of each pair, given the values of all rows at each offset; any value in padding."""
        rows, offsets = jnp.minimum(self.rows, x.shape[1] - 1), jnp.clip(self.offsets, 0, x.shape[0] - 1)
        return x[offsets, rows]

    def index_at(self, offset: Int32[Array, ""] | int) -> Int32[Array, " R"]:
        """Returns the index of each row's pair at an offset; M for rows without one."""
        return jnp.where(offset < self.counts, self.starts + offset, self.rows.shape[0])

    def at(self, offset: Int32[Array, ""] | int, x: Shaped[Array, "M *rest"]) -> Shaped[Array, "R *rest"]:
        """Returns each row's value at an offset; any value for rows without one."""
        return x[jnp.minimum(self.index_at(offset), x.shape[0] - 1)]

    def by_row(self, x: Shaped[Array, "M *rest"], depth: int) -> Shaped[Array, "R {depth} *rest"]:
        """Returns the values of each row at the first `depth` offsets; any values past the row's last one."""
        index = self.starts[:, None] + jnp.arange(depth)
        return x[jnp.minimum(index, x.shape[0] - 1)]


class Kept(NamedTuple):
    """Positions of each row whose tokens are kept.

    Attributes:
      starts: First position of each row.
      counts: Number of positions of each row that were computed; 0 for idle rows.
      last: Offset of the last position that is kept; any for idle rows.
    """

    starts: Int32[Array, " B"]
    counts: Int32[Array, " B"]
    last: Int32[Array, " B"]


class RecurrentStates(NamedTuple):
    """States of a recurrent layer after each position; those past a row's last position are that row's last one.

    Attributes:
      h: State of the RG-LRU.
      conv: State of the convolution.
    """

    h: Float32[Array, "S B E"]
    conv: Float[Array, "S K1 B E"]

    @classmethod
    def zeros(cls, state: RecurrentState, steps: int) -> "RecurrentStates":
        """Returns room for the states after `steps` positions."""
        return cls(*(jnp.zeros((steps, *x.shape), x.dtype) for x in state))

    def put(self, step: Int32[Array, ""], state: RecurrentState) -> "RecurrentStates":
        """Returns the states with the one after a position."""
        return RecurrentStates(*(all_.at[step].set(one) for all_, one in zip(self, state, strict=True)))

    def keep(self, kept: Kept) -> RecurrentState:
        """Returns each row's state after its last kept position."""
        rows, last = jnp.arange(self.h.shape[1]), jnp.clip(kept.last, 0, jnp.maximum(kept.counts - 1, 0))
        conv = jnp.moveaxis(self.conv, 2, 1)[last, rows]
        return RecurrentState(self.h[last, rows], jnp.moveaxis(conv, 0, 1))


class AttentionStates(NamedTuple):
    """State of an attention layer after all positions, and what its rings held before.

    Attributes:
      state: State after all positions.
      old: Keys and values of the positions' ring rows, for each group of rows.
    """

    state: AttentionState
    old: "OldRows"

    def keep(self, kept: Kept) -> AttentionState:
        """Returns rings that have the keys of kept positions only."""
        heads = num_key_heads(self.state.rings[0][0][0])
        rings = heads_as_rows(self.state.rings, heads)
        starts, counts, last = (for_each_head(x, heads) for x in kept)
        restored, first = [], 0
        for blocks, (keys, values) in zip(rings, self.old, strict=True):
            rows = slice(first, first + keys.shape[0])
            offsets = jnp.arange(keys.shape[1])
            undone = (offsets > last[rows, None]) & (offsets < counts[rows, None])
            positions = jnp.where(undone, starts[rows, None] + offsets, -1)
            restored.append(write_blocks(blocks, keys, values, positions, starts[rows]))
            first += keys.shape[0]
        return AttentionState(rows_as_heads(tuple(restored), heads))


type OldRows = tuple[tuple[Vectors, Vectors], ...]
"""Keys and values of several positions of each row, for each group of rows."""

type VerifiedStates = RecurrentStates | AttentionStates
"""States of one layer after several positions."""


def no_rows(rings: tuple[Blocks, ...], rows: int, depth: int) -> OldRows:
    """Returns room for the entries of each group's rings at `depth` positions of the first rows."""
    old, left = [], rows
    for blocks in rings:
        keys, _ = blocks[0]
        count = min(left, keys.shape[0])
        zeros = zero_ring(count, depth, keys.shape[-1], keys.dtype)
        old.append((zeros, zeros))
        left -= count
    return tuple(old)


def read_rows(
    rings: tuple[Blocks, ...], old: OldRows, positions: Int32[Array, " B"], offset: Int32[Array, ""]
) -> OldRows:
    """Returns `old` with the rings' entries of one position of each row, at its offset."""
    read, first = [], 0
    for blocks, (keys, values) in zip(rings, old, strict=True):
        own = positions[first : first + keys.shape[0]]
        k, v = read_blocks(blocks, own, 1)
        read.append((put_tokens(keys, k, offset), put_tokens(values, v, offset)))
        first += keys.shape[0]
    return tuple(read)
