"""Several positions of several rows, packed. Letters in shapes: R rows, M pairs."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Shaped


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
