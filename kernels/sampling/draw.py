"""Truncation and choice of a token in a TPU's on-chip memory: top-k, top-p, min-p and typical-p, then the draw.

Weights are defined as in `roost.engine.sampling.sampler`: the most likely token weighs 1. Thresholds are
found by bisection over the bits of a float32, each step of which reads all weights of the block once. A row is settled
as soon as one weight is left between its bounds, and the block when all of its rows are.

A token is drawn by inverting the running sum, which takes the lanes one after the other: first the lane is picked, then
one of its chunks of tiles, then one of the chunk's tiles.
"""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from .tiles import LANES, ROWS, Column, Index, Place, Tile, Tiles, lanes, rows, sum_lanes, tile_at, widened

_NOWHERE: Final = 2**30
"""Number of a tile that does not exist."""

type Tokens = Int32[Array, "8 1"]


_ONE_BITS: Final = 0x3F800000
"""Bits of 1.0, the largest weight. Bits of non-negative floats have the order of the floats."""

_FARTHEST_BITS: Final = 0x43000000
"""Bits of 128.0; the surprises of two weights above 0 differ by less."""

_NEAREST_BITS: Final = 0x30800000
"""Bits of 2⁻³⁰, below the rounding of a surprise."""

_SMALLEST_REST: Final = 2.0**-24
"""Smallest share that a `top_p` below 1 drops, in float32."""

type _Bits = Int32[Array, "8 1"]

type _Measure = Callable[[_Bits], Column]
"""Returns the size of the set of tokens at or above a threshold: their number, or their mass."""


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


def top_k_threshold(weights: Tiles, k: Column) -> Column:
    """Returns the weight of the k-th most likely token; 0 where k is 0."""

    def count(threshold: _Bits) -> Column:
        cut = widened(_float(threshold))
        return weights.sum(lambda tile: jnp.where(tile >= cut, 1.0, 0.0))

    lowest = jnp.zeros((ROWS, 1), jnp.int32)
    return _float(_threshold(count, k, lowest, range(_ONE_BITS + 1), lambda _: jnp.ones_like(k), k > 0))


def top_p_threshold(weights: Tiles, p: Column, mass: Column, lowest: Column) -> Column:
    """Returns the lowest of the largest weights whose sum reaches the share p of all; `lowest` where p is 1.

    Args:
      weights: All weights.
      p: Shares.
      mass: Sums of the weights at or above `lowest`.
      lowest: Weights below which tokens are dropped already.
    """
    share = 0.5 / (weights.count * LANES)  # all weights together, each below it, sum to less than 1 - p
    first = jax.lax.bitcast_convert_type(jnp.maximum(lowest, (1.0 - p) * mass * share), jnp.int32)
    bounds = range(_bits(_SMALLEST_REST * share), _ONE_BITS + 1)
    found = _threshold(lambda bits: kept_mass(weights, _float(bits)), p * mass, first, bounds, _float, p < 1)
    return jnp.where(p < 1, jnp.maximum(_float(found), lowest), lowest)


def kept_mass(weights: Tiles, cut: Column) -> Column:
    """Returns the sum of the weights at or above a threshold."""
    wide = widened(cut)
    return weights.sum(lambda tile: jnp.where(tile >= wide, tile, 0.0))


def keep_typical(weights: Tiles, p: Column, cut: Column) -> None:
    """Zeroes the weights whose surprise is not among the nearest to the entropy that reach the share p.

    A surprise that differs from the entropy by d nats is that of a weight of `middle` times exp(d) or exp(-d).

    Args:
      weights: All weights, changed in place.
      p: Shares; rows with share 1 keep their weights.
      cut: Weights below which tokens are dropped already.
    """
    mass, wide = kept_mass(weights, cut), widened(cut)
    information = weights.sum(lambda tile: jnp.where((tile >= wide) & (tile > 0), tile * jnp.log(tile), 0.0))
    middle = jnp.exp(information / mass)

    def bounds(nearness: _Bits) -> tuple[Tile, Tile]:
        factor = jnp.exp(_float(_FARTHEST_BITS - nearness))
        return widened(jnp.maximum(middle / factor, cut)), widened(middle * factor)

    def inside(nearness: _Bits) -> Callable[[Tile], Tile]:
        low, high = bounds(nearness)
        return lambda tile: jnp.where((tile >= low) & (tile <= high), tile, 0.0)

    def lightest(nearness: _Bits) -> Column:
        return bounds(nearness)[0][:, :1]

    lowest = jnp.zeros((ROWS, 1), jnp.int32)
    nearness = range(_FARTHEST_BITS - _NEAREST_BITS + 1)
    found = _threshold(
        lambda bits: weights.sum(inside(bits)), p * mass, lowest, nearness, lightest, p < 1, is_empty_enough=False
    )
    keep, is_cut = inside(found), widened(p) < 1
    weights.update(lambda _, tile: jnp.where(is_cut, keep(tile), tile))


def _threshold(
    measure: _Measure,
    enough: Column,
    low: _Bits,
    bounds: range,
    smallest: Callable[[_Bits], Column],
    rows: Array,
    *,
    is_empty_enough: bool = True,
) -> _Bits:
    """Returns a threshold that separates the smallest set that is large enough from all other tokens.

    Args:
      measure: Size of the set of tokens at or above a threshold.
      enough: Size to reach.
      low: Threshold with a set that is large enough.
      bounds: Thresholds to look at; `low` is one of them.
      smallest: Lower bound of the size of one token at or above a threshold.
      rows: Rows to look at; the result of the others is `low`.
      is_empty_enough: Whether a set of size 0 may be large enough.
    """

    def halve(state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, size_low, size_high, is_open = state
        middle = low + jax.lax.shift_right_logical(high - low, 1)
        size = measure(middle)
        is_enough = (size >= enough) if is_empty_enough else (size >= enough) & (size > 0)
        up, down = (is_open > 0) & is_enough, (is_open > 0) & ~is_enough
        low, size_low = jnp.where(up, middle, low), jnp.where(up, size, size_low)
        high, size_high = jnp.where(down, middle, high), jnp.where(down, size, size_high)
        is_settled = (high - low <= 1) | (size_low - size_high < 2 * smallest(low))
        return low, high, size_low, size_high, jnp.where(is_settled, 0.0, is_open)

    def step(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        any_open = jnp.max(state[-1]) > 0
        halved: tuple[Array, ...] = jax.lax.cond(any_open, halve, lambda state: state, state)
        return halved

    high = jnp.where(rows, jnp.full_like(low, bounds.stop), low + 1)
    unknown, nothing = jnp.full((ROWS, 1), jnp.inf, jnp.float32), jnp.zeros((ROWS, 1), jnp.float32)
    state = (low, high, unknown, nothing, jnp.where(rows, 1.0, 0.0))
    steps = (len(bounds) - 1).bit_length()  # each finds a bit
    found: tuple[Array, ...] = jax.lax.fori_loop(0, steps, step, state)
    return found[0]


def _bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))


def _float(bits: _Bits) -> Column:
    number: Array = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return number
