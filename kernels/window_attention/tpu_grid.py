"""Walk of TPU kernels for decode attention: busy rows first and, within a row, the filled blocks of its ring.

A kernel copies blocks to on-chip memory itself, each while it computes with the one before. Of a row's last block it
copies just the tiles up to the new token's. The new token replaces one there, in tiles that are copied back while the
next blocks are computed.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

READ_TILE: Final = 128
"""Rows of a ring of which copies read multiples: the lanes of a tile of scales."""


class BusyRows(NamedTuple):
    """Scalars that the grid follows.

    Attributes:
      order: Rows, the busy ones first.
      positions: Positions of the rows in this order, negative for idle ones.
    """

    order: Int32[Array, " B"]
    positions: Int32[Array, " B"]


def busy_rows_first(positions: Int32[Array, " B"]) -> BusyRows:
    """Returns the scalars for rows at these positions, which are negative for idle rows."""
    order = jnp.argsort(positions < 0, stable=True).astype(jnp.int32)
    return BusyRows(order, positions[order])


def row_index(i: Any, order: Any, *_: Any) -> tuple[Any, ...]:
    """Maps a grid step to the block of an array with one block per row."""
    return order[i], 0, 0


class RingWalk(NamedTuple):
    """Blocks of rings.

    Attributes:
      window: Rows of a ring.
      block: Rows of a block, a divisor of the window.
    """

    window: int
    block: int

    @classmethod
    def over(cls, window: int, most: int) -> "RingWalk":
        """Returns blocks that are large enough to saturate memory.

        Args:
          window: Rows of a ring.
          most: Maximum rows of a block, unless the window has no divisor among the sizes.
        """
        return cls(window, next((n for n in (1024, 512, 256, 128) if n <= most and window % n == 0), window))

    @property
    def tile(self) -> int:
        """Number of rows of which copies read multiples."""
        return READ_TILE if self.block % READ_TILE == 0 else self.block

    def num_read(self, position: Any, j: Any) -> Any:
        """Returns the number of rows of a block that are read: whole tiles up to the new token's."""
        if self.tile == self.block:
            return self.block
        newest = jnp.clip(position, 0, self.window - 1) - j * self.block
        return pl.multiple_of(jnp.minimum((block_of(newest, self.tile) + 1) * self.tile, self.block), self.tile)

    def parts(self, position: Any, j: Any) -> Iterator[tuple[int, Any]]:
        """Yields sizes of the beginning of a block, and whether each is the smallest that holds what is read."""
        least, num_read = max(self.block // 4 // self.tile, 1) * self.tile, self.num_read(position, j)
        for part in range(least, self.block + 1, least):
            yield part, (num_read <= part) & (num_read > part - least)

    def last(self, position: Any) -> Any:
        """Returns the last block that is read."""
        return block_of(jnp.clip(position, 0, self.window - 1), self.block)


class RingArray(NamedTuple):
    """Rings of keys or values, or of their scales, and on-chip memory for parts of them.

    Attributes:
      axis: Axis of tokens: 1 of rings `[P, W, d]`, 2 of scales `[P, 1, W]`.
      rings: The kernel's output, which is the memory of its input.
      blocks: Two blocks, `[2, block, d]` or `[2, 1, block]`.
      tile: Tile with the new token, `[tile, d]` or `[1, tile]`. It is free again once it was copied to its ring.
    """

    axis: int
    rings: Any
    blocks: Any
    tile: Any

    def tokens(self, row: Any, at: Any, size: Any) -> tuple[Any, ...]:
        """Returns the index of some tokens of a row."""
        return row, *[slice(None)] * (self.axis - 1), pl.ds(at, size)

    def tile_of(self, row: Any, place: Any) -> tuple[Any, ...]:
        """Returns the index of a token's tile in a row."""
        size = self.tile.shape[self.axis - 1]
        return self.tokens(row, pl.multiple_of(block_of(place, size) * size, size), size)

    def replace(self, half: Any, place: Any, token: Any) -> None:
        """Copies the tile of a token in a block, and replaces the token: by `[1, d]`, or by a scale."""
        size = self.tile.shape[self.axis - 1]
        wide = jnp.int32 if self.tile.dtype == jnp.int8 else self.tile.dtype  # numbers that the mask can select
        is_new = iota(self.tile.shape, self.axis - 1) == place - block_of(place, size) * size
        old = self.blocks[self.tile_of(half, place)]
        self.tile[...] = jnp.where(is_new, token.astype(wide), old.astype(wide)).astype(self.tile.dtype)


class RingAttention(NamedTuple):
    """Attends to rings block by block, and writes the new tokens.

    Attributes:
      walk: The blocks.
      rows: The rows' scalars, as references.
      rings: Keys, values and, if there are any, the scales of both; then, in scratch memory:
      softmax: State of a row's softmax: `top`, `total` and `mixed` of `Softmax`.
      blocks, tiles: Memory for parts of each array; see `RingArray`.
      reads: Semaphores of the copies of blocks, for each half and array.
      writes: Semaphores of the copies of tiles, for each array.
      num_visits: Number of visits to blocks of earlier rows.
    """

    walk: RingWalk
    rows: BusyRows
    rings: Sequence[Any]
    softmax: Sequence[Any]
    blocks: Sequence[Any]
    tiles: Sequence[Any]
    reads: Any
    writes: Any
    num_visits: Any

    @property
    def arrays(self) -> list[RingArray]:
        """The rings with their memory."""
        return list(map(RingArray, (1, 1, 2, 2), self.rings, self.blocks, self.tiles))

    def attend(
        self,
        out: Any,
        own: Callable[[], tuple[Any, Any]],
        add: Callable[[Any, Any, int], None],
        new: Callable[[], Sequence[Any]],
    ) -> None:
        """Computes one row of the grid; an idle one gives zeros.

        Args:
          out: Output of the row.
          own: Returns the scores `[N, 1]` and the value `[1, d]` of the new token.
          add: Called with the half that a block is in, the number of tokens in the ring from that block on, and the
            size of the beginning of the block that has them. Adds it to the softmax.
          new: Returns what replaces a token of each array: `[1, d]`, or a scale.
        """
        i = pl.program_id(0)
        position, (window, block) = self.rows.positions[i], self.walk
        is_busy, filled, slot = position >= 0, jnp.minimum(position, window), jax.lax.rem(position, jnp.int32(window))
        top, total, mixed = self.softmax

        def use(j: Any, half: Any) -> None:
            left = filled - j * block
            for part, is_part in self.walk.parts(position, j):
                pl.when((left > 0) & is_part)(partial(add, half, left, part))
            pl.when(j == block_of(slot, block))(partial(self._write, i, slot, j, half, new))

        @pl.when(is_busy)
        def attend() -> None:
            top[...], value = own()
            total[...] = jnp.ones_like(total)
            mixed[...] = jnp.broadcast_to(value, mixed.shape)
            self._visit(i, use)
            out[0] = (mixed[...] / total[...]).astype(out.dtype)
            pl.when(self._is_last(i))(self._wait_for_tiles)

        @pl.when(~is_busy)
        def idle() -> None:
            out[...] = jnp.zeros_like(out)

    def _visit(self, i: Any, use: Callable[[Any, Any], None]) -> None:
        """Calls `use` with the number and the half of each block of a busy row, while the next block is copied."""
        last, num_visits = self.walk.last(self.rows.positions[i]), self.num_visits

        @pl.when(i == 0)
        def first() -> None:
            num_visits[0] = 0
            self._start(i, 0, 0)

        before = num_visits[0]

        def visit(j: Any, carry: None) -> None:
            half = (before + j) & 1
            is_end = j == last
            follows = ~(is_end & self._is_last(i))
            following = jnp.where(is_end, self._next(i), i)
            pl.when(follows)(lambda: self._start(following, jnp.where(is_end, 0, j + 1), 1 - half))
            for copy in self._block_copies(i, j, half):
                copy.wait()
            use(j, half)

        jax.lax.fori_loop(0, last + 1, visit, None)
        num_visits[0] = before + last + 1

    def _is_last(self, i: Any) -> Any:
        """Returns whether no busy row follows a busy row."""
        return (self._next(i) == i) | (self.rows.positions[self._next(i)] < 0)

    def _next(self, i: Any) -> Any:
        return jnp.minimum(i + 1, self.rows.order.shape[0] - 1)

    def _start(self, i: Any, j: Any, half: Any) -> None:
        for copy in self._block_copies(i, j, half):
            copy.start()

    def _block_copies(self, i: Any, j: Any, half: Any) -> list[Any]:
        walk, row = self.walk, self.rows.order[i]
        num_read = walk.num_read(self.rows.positions[i], j)
        at = pl.multiple_of(j * walk.block, walk.block)
        return [
            pltpu.make_async_copy(
                array.rings.at[array.tokens(row, at, num_read)],
                array.blocks.at[array.tokens(half, 0, num_read)],
                self.reads.at[half, n],
            )
            for n, array in enumerate(self.arrays)
        ]

    def _write(self, i: Any, slot: Any, j: Any, half: Any, new: Callable[[], Sequence[Any]]) -> None:
        """Starts to copy the tiles with a row's new token, which are in a block, to the rings."""
        pl.when(i > 0)(self._wait_for_tiles)
        for array, token in zip(self.arrays, new(), strict=True):
            array.replace(half, slot - j * self.walk.block, token)
        for copy in self._tile_copies(self.rows.order[i], slot):
            copy.start()

    def _wait_for_tiles(self) -> None:
        for copy in self._tile_copies(0, jnp.int32(0)):
            copy.wait()

    def _tile_copies(self, row: Any, slot: Any) -> list[Any]:
        return [
            pltpu.make_async_copy(array.tile, array.rings.at[array.tile_of(row, slot)], self.writes.at[n])
            for n, array in enumerate(self.arrays)
        ]


def block_of(place: Any, size: int) -> Any:
    """Returns place // size for place ≥ 0, without the handling of signs that `//` adds."""
    if size & (size - 1):
        return jax.lax.div(place, jnp.int32(size))
    return jax.lax.shift_right_logical(place, jnp.int32(size.bit_length() - 1))


def iota(shape: tuple[int, ...], axis: int) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)
