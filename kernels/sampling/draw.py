"""Choice of a token in a TPU's on-chip memory: the most likely one, or one drawn by inverting the running sum.

The running sum takes the lanes one after the other: first the lane is picked, then one of its chunks of tiles, then
one of the chunk's tiles.
"""

from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from .tiles import LANES, ROWS, Column, Index, Place, Tile, Tiles, lanes, rows, sum_lanes, tile_at, widened

_NOWHERE: Final = 2**30
"""Number of a tile that does not exist."""

type Tokens = Int32[Array, "8 1"]


def copy_and_summarize(source: Tiles, target: Tiles) -> tuple[Tile, Tile]:
    """Copies logits, and returns the highest of every lane and a number that is NaN if one of them is NaN.

    The number is a sum, scaled down so that no logits overflow.
    """

    def copy(place: Place) -> tuple[Tile, Tile]:
        target[place] = source[place]
        return source[place], source[place] * 2.0**-40

    def combine(a: tuple[Tile, Tile], b: tuple[Tile, Tile]) -> tuple[Tile, Tile]:
        return jnp.maximum(a[0], b[0]), a[1] + b[1]

    nothing = (jnp.full((ROWS, LANES), -jnp.inf, jnp.float32), jnp.zeros((ROWS, LANES), jnp.float32))
    summary: tuple[Tile, Tile] = source.reduce(copy, combine, nothing)
    return summary


def weigh(logits: Tiles, best: Column, temperature: Column) -> Column:
    """Replaces logits by their weights, exp((logit - best) / temperature), and returns the sum of each row's."""
    highest, scale = widened(best), widened(1.0 / jnp.maximum(temperature, 1e-37))

    def weight(place: Place) -> Tile:
        weights = jnp.exp((logits[place] - highest) * scale)
        logits[place] = weights
        return weights

    return sum_lanes(logits.reduce(weight, jnp.add, jnp.zeros((ROWS, LANES), jnp.float32)))


def most_likely(logits: Tiles, best: Column) -> Tokens:
    """Returns the first token with the highest logit."""
    highest = widened(best)
    first = logits.reduce(
        lambda place: jnp.where(logits[place] == highest, logits.number(place), _NOWHERE),
        jnp.minimum,
        jnp.full((ROWS, LANES), _NOWHERE, jnp.int32),
    )
    tokens = jnp.where(first < _NOWHERE, first * LANES + lanes(), _NOWHERE)
    return jnp.minimum(jnp.min(tokens, axis=1, keepdims=True), logits.count * LANES - 1)


def invert(weights: Tiles, cut: Column, uniform: Column, running: Any) -> Tokens:
    """Returns the token at which the running sum passes `uniform` of the whole; never one of weight 0.

    Args:
      weights: All weights.
      cut: Weights below it count as 0.
      uniform: Numbers from 0, below 1.
      running: Reference to scratch memory, `[chunks, 8, 128]`.
    """
    wide = widened(cut)

    def keep(place: Place) -> Tile:
        return jnp.where(weights[place] >= wide, weights[place], 0.0)

    def add_chunk(chunk: Index, total: Tile) -> Tile:
        total = total + weights.reduce_chunk(chunk, keep, jnp.add, jnp.zeros_like(total))
        running[chunk] = total
        return total

    sums = jax.lax.fori_loop(0, weights.chunks, add_chunk, jnp.zeros((ROWS, LANES), jnp.float32))
    lane, left = _pick_lane(sums, uniform)
    in_lane = lanes() == lane
    chunk, left = _pick_chunk(running, weights.chunks, left, in_lane)
    tile = _pick_tile(weights, wide, chunk, left, in_lane)
    return (chunk * weights.chunk + tile) * LANES + lane


def _pick_lane(sums: Tile, uniform: Column) -> tuple[Tokens, Column]:
    """Returns the lane at which the running sum of lanes passes `uniform` of the whole, and the rest of that."""
    running = sums
    for distance in (1, 2, 4, 8, 16, 32, 64):
        running = running + jnp.where(lanes() >= distance, pltpu.roll(running, distance, 1), 0.0)
    goal = uniform * _at(running, lanes() == LANES - 1)
    last = jnp.max(jnp.where(sums > 0, lanes(), 0), axis=1, keepdims=True)  # if rounding leaves the goal over
    hits = jnp.where((running > goal) & (sums > 0), lanes(), LANES)
    lane = jnp.minimum(jnp.min(hits, axis=1, keepdims=True), last)
    total, before = _at(sums, lanes() == lane), _at(running - sums, lanes() == lane)
    below = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(total, jnp.int32) - 1, jnp.float32)
    return lane, jnp.clip(goal - before, 0.0, jnp.where(total > 0, below, 0.0))


def _pick_chunk(running: Any, chunks: int, left: Column, in_lane: Array) -> tuple[Tokens, Column]:
    """Returns the chunk of the lane at which its running sum passes `left`, and the rest of that."""
    wide = widened(left)

    def pass_over(chunk: Index, state: tuple[Tile, Tile]) -> tuple[Tile, Tile]:
        passed, before = state
        is_passed = running[chunk] <= wide
        return jnp.where(is_passed, passed + 1.0, passed), jnp.where(is_passed, running[chunk], before)

    zeros = jnp.zeros((ROWS, LANES), jnp.float32)
    passed, before = jax.lax.fori_loop(0, chunks, pass_over, (zeros, zeros))
    chunk = jnp.minimum(_at(passed, in_lane), chunks - 1.0).astype(jnp.int32)
    return chunk, left - _at(before, in_lane)


def _pick_tile(weights: Tiles, cut: Tile, chunk: Tokens, left: Column, in_lane: Array) -> Tokens:
    """Returns the tile of each row's chunk at which the lane's running sum passes `left`, counted from the chunk."""
    numbers = widened(chunk).astype(jnp.float32)
    starts = [jnp.max(jnp.where(rows() == row, numbers, 0.0)).astype(jnp.int32) * weights.chunk for row in range(ROWS)]
    goal = widened(left)

    def visit(tile: Index, state: tuple[Tile, Tile, Tile]) -> tuple[Tile, Tile, Tile]:
        total, found, last = state
        mixed = jnp.zeros((ROWS, LANES), jnp.float32)
        for row, start in enumerate(starts):
            mixed = jnp.where(rows() == row, weights.ref[:, tile_at(start + tile)], mixed)
        weight, number = jnp.where(mixed >= cut, mixed, 0.0), jax.lax.convert_element_type(tile, jnp.float32)
        total = total + weight
        is_hit = (total > goal) & (weight > 0) & (found < 0)
        return total, jnp.where(is_hit, number, found), jnp.where(weight > 0, number, last)

    zeros = jnp.zeros((ROWS, LANES), jnp.float32)
    _, found, last = jax.lax.fori_loop(0, weights.chunk, visit, (zeros, zeros - 1.0, zeros))
    return _at(jnp.where(found < 0, last, found), in_lane).astype(jnp.int32)


def _at(tile: Tile, place: Array) -> Column:
    """Returns the element of each row that `place` selects."""
    return sum_lanes(jnp.where(place, tile, 0.0))
