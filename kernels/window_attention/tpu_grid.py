"""Walk of TPU kernels for decode attention: busy rows first and, within a row, the filled blocks of its ring.

A kernel copies blocks to on-chip memory itself, each while it computes with the one before. Of a row's last block it
copies just the tiles up to the new token's.
"""

from collections.abc import Callable, Iterator, Sequence
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


class RingReader(NamedTuple):
    """Copies blocks of rings to on-chip memory, alternately to its two halves.

    Attributes:
      walk: The blocks.
      rows: The rows' scalars, as references.
      arrays: Rings `[P, W, d]` or scales `[P, 1, W]`, each with memory `[2, block, d]` or `[2, 1, block]` and the axis
        of tokens.
      semaphores: One for each half and array.
    """

    walk: RingWalk
    rows: BusyRows
    arrays: Sequence[tuple[Any, Any, int]]
    semaphores: Any

    def visit(self, i: Any, num_visits: Any, use: Callable[[Any, Any], None]) -> None:
        """Visits the blocks of a busy row, each while the next one is copied.

        Args:
          i: Index of the row in the order of rows.
          num_visits: Scalar memory for the number of visits to earlier rows.
          use: Called with the number of a block and the half that it is in.
        """
        last = self.walk.last(self.rows.positions[i])

        @pl.when(i == 0)
        def first() -> None:
            num_visits[0] = 0
            self.start(i, 0, 0)

        before = num_visits[0]

        def visit(j: Any, carry: None) -> None:
            half = (before + j) & 1
            is_end = j == last
            follows = ~(is_end & self.is_last(i))
            following = jnp.where(is_end, self._next(i), i)
            pl.when(follows)(lambda: self.start(following, jnp.where(is_end, 0, j + 1), 1 - half))
            self.wait(i, j, half)
            use(j, half)

        jax.lax.fori_loop(0, last + 1, visit, None)
        num_visits[0] = before + last + 1

    def is_last(self, i: Any) -> Any:
        """Returns whether no busy row follows a busy row."""
        return (self._next(i) == i) | (self.rows.positions[self._next(i)] < 0)

    def _next(self, i: Any) -> Any:
        return jnp.minimum(i + 1, self.rows.order.shape[0] - 1)

    def start(self, i: Any, j: Any, half: Any) -> None:
        """Starts to copy a block of a row."""
        for copy in self._copies(i, j, half):
            copy.start()

    def wait(self, i: Any, j: Any, half: Any) -> None:
        """Waits for the same."""
        for copy in self._copies(i, j, half):
            copy.wait()

    def _copies(self, i: Any, j: Any, half: Any) -> list[Any]:
        walk, row = self.walk, self.rows.order[i]
        num_read = walk.num_read(self.rows.positions[i], j)
        at = pl.multiple_of(j * walk.block, walk.block)
        return [
            pltpu.make_async_copy(
                _part(ring, row, axis, at, num_read),
                _part(memory, half, axis, 0, num_read),
                self.semaphores.at[half, n],
            )
            for n, (ring, memory, axis) in enumerate(self.arrays)
        ]


def _part(array: Any, row: Any, axis: int, at: Any, size: Any) -> Any:
    """Returns a reference to some tokens of a row, which lie along an axis."""
    return array.at[(row, *[slice(None)] * (axis - 1), pl.ds(at, size))]


def block_of(place: Any, size: int) -> Any:
    """Returns place // size for place ≥ 0, without the handling of signs that `//` adds."""
    if size & (size - 1):
        return jax.lax.div(place, jnp.int32(size))
    return jax.lax.shift_right_logical(place, jnp.int32(size.bit_length() - 1))
