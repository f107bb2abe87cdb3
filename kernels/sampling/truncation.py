"""Truncation in a TPU's on-chip memory: top-k, top-p, min-p and typical-p, in this order.

Weights are defined as in `roost.engine.sampling.truncation`: the most likely token weighs 1. Thresholds are found by
bisection over the bits of a float32, each step of which reads all weights of the block once. A row is settled as soon
as one weight is left between its bounds, and the block when all of its rows are.
"""

from collections.abc import Callable
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from .tiles import LANES, ROWS, Column, Tile, Tiles, widened

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
