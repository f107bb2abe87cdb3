"""Loops over a block of rows in a TPU's on-chip memory, tile by tile.

A tile is one vector register: 8 rows of 128 neighbouring tokens, one token per lane. Loops are unrolled by chunks of
tiles, and reduce into several registers in turn, so that no tile waits for the one before.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float32, Int32

ROWS: Final = 8
"""Number of rows of a tile."""

LANES: Final = 128
"""Number of tokens of a tile."""

_LONGEST_CHUNK: Final = 80
"""Maximum number of tiles per step of a loop: a longer one runs out of registers."""

_ALIGNMENT: Final = 16
"""Number of tiles that a long row is padded to a multiple of, so that it splits into long chunks."""

_ACCUMULATORS: Final = 4
"""Number of registers that a reduction uses in turn."""

type Tile = Float32[Array, "8 128"]
type Column = Float32[Array, "8 1"]

type Index = Any
"""Number of a row, a tile, a chunk or a place of a list: an int32 scalar, or an int if loops are unrolled."""


class Place(NamedTuple):
    """Place of a tile: its chunk, and its number in the chunk, known when the loop is unrolled."""

    chunk: Index
    offset: int


def padded_size(vocab_size: int) -> int:
    """Returns the number of tokens of a row that splits into tiles and chunks."""
    tiles = -(-vocab_size // LANES)
    if tiles > _LONGEST_CHUNK:
        tiles = -(-tiles // _ALIGNMENT) * _ALIGNMENT
    return tiles * LANES


def num_chunks(size: int) -> int:
    """Returns the number of chunks of a row whose size is a `padded_size`: as few as the longest chunk allows."""
    tiles = size // LANES
    return next(n for n in range(-(-tiles // _LONGEST_CHUNK), tiles + 1) if tiles % n == 0)


def lanes() -> Int32[Array, "8 128"]:
    """Returns the number of each lane."""
    return jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 1)


def rows() -> Int32[Array, "8 128"]:
    """Returns the number of each row."""
    return jax.lax.broadcasted_iota(jnp.int32, (ROWS, LANES), 0)


def widened(column: Array) -> Array:
    """Returns a column `[8, 1]` as a tile."""
    return jnp.broadcast_to(column, (ROWS, LANES))


def sum_lanes(tile: Array) -> Array:
    """Returns the sum of each row of a tile."""
    return jnp.sum(tile, axis=1, keepdims=True)


def repeat_for(count: Index, visit: Callable[[Index], None]) -> None:
    """Calls a function with each number below `count`, in a loop of the kernel."""
    jax.lax.fori_loop(0, count, lambda number, _: visit(number), None)


@dataclass(frozen=True, slots=True)
class Tiles:
    """A block of rows, `[8, V]`, where V is a `padded_size`.

    Attributes:
      ref: Reference to the block.
    """

    ref: Any

    @property
    def count(self) -> int:
        """Number of tiles."""
        return int(self.ref.shape[1]) // LANES

    @property
    def chunk(self) -> int:
        """Number of tiles per chunk."""
        return self.count // self.chunks

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return num_chunks(int(self.ref.shape[1]))

    def __getitem__(self, place: Place) -> Array:
        value: Array = self._chunk(place)[:, _lanes_of(place.offset)]
        return value

    def __setitem__(self, place: Place, value: Array) -> None:
        self._chunk(place)[:, _lanes_of(place.offset)] = value

    def _chunk(self, place: Place) -> Any:
        """Returns a reference to a chunk: the tiles in it then lie at constant distances."""
        size = self.chunk * LANES
        return self.ref.at[:, pl.ds(pl.multiple_of(place.chunk * size, LANES), size)]

    def number(self, place: Place) -> Index:
        """Returns the number of a tile."""
        return place.chunk * self.chunk + place.offset

    def reduce(self, value: Callable[[Place], Any], combine: Callable[[Any, Any], Any], neutral: Any) -> Any:
        """Reduces over tiles, lane by lane.

        Args:
          value: Computes a tile's share of the result.
          combine: Combines two results.
          neutral: Result without tiles.
        """

        def step(chunk: Index, results: tuple[Any, ...]) -> tuple[Any, ...]:
            return self._reduce_into(results, chunk, value, combine)

        return functools.reduce(combine, jax.lax.fori_loop(0, self.chunks, step, (neutral,) * _ACCUMULATORS))

    def reduce_chunk(
        self, chunk: Index, value: Callable[[Place], Any], combine: Callable[[Any, Any], Any], neutral: Any
    ) -> Any:
        """Reduces over the tiles of one chunk, lane by lane; see `reduce`."""
        return functools.reduce(combine, self._reduce_into((neutral,) * _ACCUMULATORS, chunk, value, combine))

    def _reduce_into(
        self,
        results: tuple[Any, ...],
        chunk: Index,
        value: Callable[[Place], Any],
        combine: Callable[[Any, Any], Any],
    ) -> tuple[Any, ...]:
        partial = list(results)
        for tile in range(self.chunk):
            turn = tile % _ACCUMULATORS
            partial[turn] = combine(partial[turn], value(Place(chunk, tile)))
        return tuple(partial)

    def sum(self, value: Callable[[Tile], Tile]) -> Column:
        """Returns the sum of a function of every element, for each row."""
        return sum_lanes(self.reduce(lambda place: value(self[place]), jnp.add, jnp.zeros((ROWS, LANES), jnp.float32)))

    def update(self, change: Callable[[Place, Tile], Tile]) -> None:
        """Replaces every tile by a function of its place and itself."""

        def step(chunk: Index) -> None:
            for tile in range(self.chunk):
                place = Place(chunk, tile)
                self[place] = change(place, self[place])

        repeat_for(self.chunks, step)


def _lanes_of(tile: int) -> slice:
    return slice(tile * LANES, (tile + 1) * LANES)


def tile_at(tile: Index) -> Any:
    """Returns the lanes of a tile that is known only when the kernel runs."""
    return pl.ds(pl.multiple_of(tile * LANES, LANES), LANES)
