"""Truncation of a distribution: top-k, top-p, min-p and typical-p, in this order.

A token's weight is exp((logit - highest logit) / temperature), so the most likely token weighs exactly 1. Truncation
keeps the weights at or above a threshold, so that tokens of equal weight are kept or dropped together. typical-p is a
threshold on the distance between a token's surprise and the entropy.

The vocabulary is never sorted: thresholds are found among a row's most likely tokens, its candidates, or by bisection
over the bits of a float32. Letters in shapes: R rows, V vocabulary, C candidates.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from ..types.sampling_params import SamplingState
from .logits_processors import column_of, when

_ONE_BITS: Final = 0x3F800000
"""Bits of 1.0, the largest weight. Bits of non-negative floats have the order of the floats."""

_INFINITY_BITS: Final = 0x7F800000
"""Bits of infinity, the largest distance."""

type _IsEnough = Callable[[Bool[Array, "R V"]], Bool[Array, " R"]]
"""Returns whether a set of tokens is large enough for a row."""


def without_truncation(state: SamplingState[Array], rows: Bool[Array, " R"], vocab_size: int) -> SamplingState[Array]:
    """Returns the state with `top_k` within the vocabulary, and temperature 1 and no truncation outside `rows`."""
    return replace(
        state,
        temperature=jnp.where(rows, state.temperature, 1.0),
        top_k=jnp.where(rows, jnp.minimum(state.top_k, vocab_size), 0),
        top_p=jnp.where(rows, state.top_p, 1.0),
        typical_p=jnp.where(rows, state.typical_p, 1.0),
    )


def may_fit_candidates(state: SamplingState[Array], rows: Bool[Array, " R"]) -> Bool[Array, " R"]:
    """Returns which of the rows may keep only candidates: rows whose thresholds are all on weights."""
    return rows & ((state.top_k > 0) | (state.top_p < 1) | (state.min_p > 0)) & (state.typical_p >= 1)


def candidate_threshold(
    weights: Float32[Array, "R C"], state: SamplingState[Array], total: Callable[[], Float32[Array, " R"]]
) -> Float32[Array, " R"]:
    """Returns the weight below which top-k, top-p and min-p drop tokens; 0 if it is below all candidates.

    Args:
      weights: Weights of the candidates, in descending order.
      total: Computes the sum of all weights of the vocabulary.
    """
    count = weights.shape[1]
    cut_k = jnp.where(state.top_k > count, 0.0, column_of(weights, jnp.maximum(state.top_k, 1) - 1))
    cut_k = jnp.where(state.top_k > 0, cut_k, 0.0)
    kept = jnp.where(weights >= cut_k[:, None], weights, 0.0)
    mass = when(jnp.any((state.top_p < 1) & (state.top_k == 0)), total, lambda: jnp.ones(weights.shape[0], jnp.float32))
    mass = jnp.where(state.top_k > 0, jnp.sum(kept, axis=-1), mass)
    enough = jnp.cumsum(kept, axis=-1) >= (state.top_p * mass)[:, None]
    has_cut = jnp.any(enough, axis=-1) & (state.top_p < 1)
    cut_p = jnp.where(has_cut, column_of(weights, jnp.argmax(enough, axis=-1)), 0.0)
    return jnp.maximum(jnp.maximum(cut_k, cut_p), state.min_p)


def truncate(
    weights: Float32[Array, "R V"], state: SamplingState[Array], rows: Bool[Array, " R"]
) -> Float32[Array, "R V"]:
    """Returns the weights, with 0 for dropped tokens; arbitrary outside `rows`."""
    top_k, top_p = jnp.where(rows, state.top_k, 0), jnp.where(rows, state.top_p, 1.0)
    weights = when(jnp.any(top_k > 0), lambda: _keep_top_k(weights, top_k), lambda: weights)
    weights = when(jnp.any(top_p < 1), lambda: _keep_top_p(weights, top_p), lambda: weights)
    weights = jnp.where(weights >= state.min_p[:, None], weights, 0.0)
    typical_p = jnp.where(rows, state.typical_p, 1.0)
    return when(jnp.any(typical_p < 1), lambda: _keep_typical(weights, typical_p), lambda: weights)


def _keep_top_k(weights: Float32[Array, "R V"], k: Int32[Array, " R"]) -> Float32[Array, "R V"]:
    """Keeps the k largest weights and ties of the last; all if k is 0."""
    full = jnp.where(k > 0, jnp.minimum(k, weights.shape[1]), weights.shape[1])
    return _keep_largest(weights, lambda kept: jnp.sum(kept, axis=-1) >= full)


def _keep_top_p(weights: Float32[Array, "R V"], p: Float32[Array, " R"]) -> Float32[Array, "R V"]:
    """Keeps the smallest set of largest weights whose sum reaches the share p of all, and ties of the last."""
    cut = _keep_largest(weights, _reaches(weights, p))
    return jnp.where(p[:, None] < 1, cut, weights)


def _keep_typical(weights: Float32[Array, "R V"], p: Float32[Array, " R"]) -> Float32[Array, "R V"]:
    """Keeps the tokens whose surprise is nearest to the entropy, until they reach the share p, and ties of the last."""
    total = jnp.sum(weights, axis=-1, keepdims=True)
    surprise = jnp.where(weights > 0, jnp.log(total) - jnp.log(weights), jnp.inf)
    entropy = jnp.sum(jnp.where(weights > 0, weights * surprise, 0.0), axis=-1, keepdims=True) / total
    distance = jnp.where(weights > 0, jnp.abs(surprise - entropy), jnp.inf)
    nearness = _INFINITY_BITS - jax.lax.bitcast_convert_type(distance, jnp.int32)
    threshold = _threshold(nearness, _INFINITY_BITS, _reaches(weights, p))
    kept = nearness >= jnp.minimum(threshold, jnp.max(nearness, axis=-1))[:, None]  # p may be rounded to 0
    return jnp.where((p[:, None] < 1) & ~kept, 0.0, weights)


def _reaches(weights: Float32[Array, "R V"], p: Float32[Array, " R"]) -> _IsEnough:
    """Returns a test whether the weights of kept tokens sum to the share p of all."""
    mass = p * jnp.sum(weights, axis=-1)
    return lambda kept: jnp.sum(jnp.where(kept, weights, 0.0), axis=-1) >= mass


def _keep_largest(weights: Float32[Array, "R V"], is_enough: _IsEnough) -> Float32[Array, "R V"]:
    """Zeroes the weights below the highest threshold that keeps enough."""
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)
    return jnp.where(bits >= _threshold(bits, _ONE_BITS, is_enough)[:, None], weights, 0.0)


def _threshold(bits: Int32[Array, "R V"], most: int, is_enough: _IsEnough) -> Int32[Array, " R"]:
    """Returns the highest number from 0 to `most` for which enough bits are at or above it, found by bisection."""

    def halve(_: Int32[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # low keeps enough, high does not
        middle = low + (high - low) // 2
        enough = is_enough(bits >= middle[:, None])
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low: Int32[Array, " R"] = jnp.zeros(bits.shape[0], jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, most + 1)))
    return low
