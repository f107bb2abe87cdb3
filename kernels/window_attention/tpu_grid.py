"""Grid of TPU kernels for decode attention: busy rows first and, within a row, blocks of its ring.

A grid step that needs no block of a ring maps to the block that is loaded already, so it moves no bytes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32


class BusyRows(NamedTuple):
    """Scalars that the grid follows.

    Attributes:
      order: Rows, the busy ones first.
      positions: Positions of the rows in this order.
      num_busy: Number of busy rows.
    """

    order: Int32[Array, " B"]
    positions: Int32[Array, " B"]
    num_busy: Int32[Array, " 1"]


def busy_rows_first(positions: Int32[Array, " B"]) -> BusyRows:
    """Returns the scalars for rows at these positions, which are negative for idle rows."""
    busy = positions >= 0
    order = jnp.argsort(~busy, stable=True).astype(jnp.int32)
    return BusyRows(order, positions[order], jnp.sum(busy, dtype=jnp.int32)[None])


def row_index(i: Any, j: Any, order: Any, *_: Any) -> tuple[Any, ...]:
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
        """Returns blocks that are small enough to skip unfilled rows, and large enough to saturate memory.

        Args:
          window: Rows of a ring.
          most: Maximum rows of a block, unless the window has no divisor among the sizes.
        """
        return cls(window, next((n for n in (1024, 512, 256, 128) if n <= most and window % n == 0), window))

    @property
    def num_blocks(self) -> int:
        """Number of blocks of a ring."""
        return self.window // self.block

    def ring_index(self, i: Any, j: Any, order: Any, positions: Any, count: Any, *_: Any) -> tuple[Any, ...]:
        """Maps a grid step to a block of a ring."""
        reader = jnp.minimum(i, jnp.maximum(count[0] - 1, 0))
        last = block_of(jnp.clip(positions[reader], 0, self.window - 1), self.block)
        return order[reader], jnp.where(i == reader, jnp.minimum(j, last), last), 0

    def scale_index(self, *args: Any) -> tuple[Any, ...]:
        """Maps a grid step to a block of the scales of a ring in int8."""
        row, at, _ = self.ring_index(*args)
        return row, 0, at


def block_of(place: Any, size: int) -> Any:
    """Returns place // size for place ≥ 0, without the handling of signs that `//` adds."""
    return jax.lax.div(place, jnp.int32(size))
