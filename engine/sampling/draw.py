"""Random draw of a token per row: inverse transform sampling from the truncated distribution.

The candidates of a row are its few most likely tokens. A row whose threshold is among its candidates is drawn from
them; only other rows incur the cost of the whole vocabulary. Which method a row takes depends only on that row, so its
token does not depend on its neighbours. Letters in shapes: R rows, V vocabulary, K weights to pick from.
"""

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from ...kernels import XLA, Backend
from ...kernels.sampling.top_k import top_k
from ..types.sampling_params import SamplingState
from .array_ops import column_of, when
from .truncation import candidate_threshold, may_fit_candidates, truncate, without_truncation

_CANDIDATES: Final = 64
"""Number of most likely tokens that are examined first."""

_LANE: Final = 128
"""Weights that are summed together before one of them is picked."""


def draw(
    logits: Float32[Array, "R V"],
    state: SamplingState[Array],
    positions: Int32[Array, " R"],
    random: Bool[Array, " R"],
    backend: Backend = XLA,
) -> Int32[Array, " R"]:
    """Returns a token per row, drawn from the truncated softmax(logits / temperature).

    Args:
      logits: Processed logits.
      positions: Positions of the tokens, which together with a row's seed determine all its randomness.
      random: Rows to draw for; the token of other rows is arbitrary.
      backend: Backend of the kernels.
    """
    uniform = uniform_numbers(state, positions)
    state = without_truncation(state, random, logits.shape[1])
    is_cut = may_fit_candidates(state, random)
    tokens, found = when(
        jnp.any(is_cut),
        lambda: draw_from_candidates(logits, state, uniform, backend),
        lambda: (jnp.zeros(logits.shape[0], jnp.int32), jnp.zeros(logits.shape[0], jnp.bool)),
    )
    rest = random & ~(found & is_cut)
    return when(
        jnp.any(rest),
        lambda: jnp.where(rest, _draw_from_vocabulary(logits, state, uniform, rest), tokens),
        lambda: tokens,
    )


def uniform_numbers(state: SamplingState[Array], positions: Int32[Array, " R"]) -> Float32[Array, " R"]:
    """Returns the random number of every row: from 0, below 1, a function of its seed and position alone."""
    keys = jax.vmap(lambda seed, p: jax.random.fold_in(jax.random.wrap_key_data(seed), p))(state.seed, positions)
    return jax.vmap(jax.random.uniform)(keys)


def draw_from_candidates(
    logits: Float32[Array, "R V"], state: SamplingState[Array], uniform: Float32[Array, " R"], backend: Backend = XLA
) -> tuple[Int32[Array, " R"], Bool[Array, " R"]]:
    """Returns a token of each row's candidates, and whether the candidates include every token that the row keeps."""
    count = min(_CANDIDATES, logits.shape[1])
    best, ids = top_k(logits, count, backend)
    temperature = state.temperature[:, None]
    weights = jnp.exp((best - best[:, :1]) / temperature)
    cut = candidate_threshold(weights, state, lambda: jnp.sum(jnp.exp((logits - best[:, :1]) / temperature), axis=-1))
    kept = jnp.where(weights >= cut[:, None], weights, 0.0)
    place, _ = _pick(kept, uniform * jnp.sum(kept, axis=-1))
    found = (state.top_k <= count) & ((cut > weights[:, -1]) | (count == logits.shape[1]))
    return column_of(ids, place), found


def _draw_from_vocabulary(
    logits: Float32[Array, "R V"],
    state: SamplingState[Array],
    uniform: Float32[Array, " R"],
    rows: Bool[Array, " R"],
) -> Int32[Array, " R"]:
    """Returns a token of the whole vocabulary; arbitrary outside `rows`."""
    below_best = logits - jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(below_best / state.temperature[:, None])
    return invert(truncate(weights, state, rows), uniform)


def invert(weights: Float32[Array, "R V"], uniform: Float32[Array, " R"]) -> Int32[Array, " R"]:
    """Returns the token at which the running sum of weights exceeds the share `uniform` of their total.

    The lane is picked first and then the token in it. The token of a row without weights is arbitrary.
    """
    rows, vocab = weights.shape
    lanes = jnp.pad(weights, ((0, 0), (0, -vocab % _LANE))).reshape(rows, -1, _LANE)
    sums = jnp.sum(lanes, axis=-1)
    index, left = _pick(sums, uniform * jnp.sum(sums, axis=-1))
    within, _ = _pick(jnp.take_along_axis(lanes, index[:, None, None], axis=1)[:, 0], left)
    return jnp.minimum(index * _LANE + within, vocab - 1)


def _pick(
    weights: Float32[Array, "R K"], target: Float32[Array, " R"]
) -> tuple[Int32[Array, " R"], Float32[Array, " R"]]:
    """Returns the first index whose running sum exceeds the target, never one of weight 0, and the remainder of the
    target.
    """
    running = jnp.cumsum(weights, axis=-1)
    hit = (running > target[:, None]) & (weights > 0)
    last = weights.shape[1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)  # if rounding leaves a remainder
    index = jnp.where(jnp.any(hit, axis=-1), jnp.argmax(hit, axis=-1), last)
    before = jnp.take_along_axis(running - weights, index[:, None], axis=-1)[:, 0]
    return index.astype(jnp.int32), target - before
