"""Logits processors: biases, penalties and token masks, then truncation; and the state of each row that they read.

Masks come after biases and penalties, so that nothing is computed with the -inf of a masked token, which can therefore
not become NaN or allowed. A row without processors keeps its logits bit for bit, independent of the processors of other
rows. A processor that no row has is not computed.

Truncation is top-k, top-p, min-p and typical-p, in this order. A token's weight is exp((logit - highest logit) /
temperature), so the most likely token weighs exactly 1. Truncation keeps the weights at or above a threshold, so that
tokens of equal weight are kept or dropped together. typical-p is a threshold on the distance between a token's surprise
and the entropy. The vocabulary is never sorted: thresholds are found among a row's most likely tokens, its candidates,
or by bisection over the bits of a float32.

Letters in shapes: R rows, M slots, V vocabulary, W words of a token mask (32 tokens each), K = `PENALTY_WINDOW`; S ids
of a list, C candidates.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Shaped, UInt32

from ..types.output_constraint import words_of_mask
from ..types.sampling_params import NO_TOKEN, PENALTY_WINDOW, SAMPLING_COLUMNS, SamplingState

jax.tree_util.register_dataclass(SamplingState)


class TokenMemory(NamedTuple):
    """Sets of tokens and recent tokens of every row. Its size does not grow with a row's number of tokens.

    Attributes:
      in_prompt: Bits of the tokens that are in the prompt; only maintained for penalized rows.
      allowed: Bits of the tokens that may come next; only maintained for masked rows.
      recent: Last generated tokens, the one at position p in column p mod K; only maintained for penalized rows.
    """

    in_prompt: UInt32[Array, "R W"]
    allowed: UInt32[Array, "R W"]
    recent: Int32[Array, "R K"]


def zero_sampling_state(rows: int) -> SamplingState[Array]:
    """Returns the sampling state of rows that decode greedily without a limit."""
    return SamplingState(
        **{
            name: jnp.full((rows, *column.shape), column.neutral, column.dtype)
            for name, column in SAMPLING_COLUMNS.items()
        }
    )


def zero_token_memory(rows: int, vocab_size: int) -> TokenMemory:
    """Returns the token memory of rows without tokens."""
    words = words_of_mask(vocab_size)
    return TokenMemory(
        in_prompt=jnp.zeros((rows, words), jnp.uint32),
        allowed=jnp.zeros((rows, words), jnp.uint32),
        recent=no_tokens(rows),
    )


def no_tokens(rows: int) -> Int32[Array, "R K"]:
    """Returns `TokenMemory.recent` of rows that have generated nothing."""
    return jnp.full((rows, PENALTY_WINDOW), NO_TOKEN, jnp.int32)


def record_tokens(
    recent: Int32[Array, "M K"], tokens: Int32[Array, " R"], positions: Int32[Array, " R"], rows: Bool[Array, " R"]
) -> Int32[Array, "M K"]:
    """Returns `recent` with a new token for every slot that `rows` selects among the first R, instead of the oldest."""
    row = jnp.where(rows, jnp.arange(tokens.shape[0]), recent.shape[0])
    return recent.at[row, positions % recent.shape[1]].set(tokens, mode="drop")


_ONE_BITS: Final = 0x3F800000
"""Bits of 1.0, the largest weight. Bits of non-negative floats have the order of the floats."""

_INFINITY_BITS: Final = 0x7F800000
"""Bits of infinity, the largest distance."""

type _IsEnough = Callable[[Bool[Array, "R V"]], Bool[Array, " R"]]
"""Returns whether a set of tokens is large enough for a row."""


def process_logits(
    logits: Float32[Array, "R V"],
    state: SamplingState[Array],
    memory: TokenMemory,
    positions: Int32[Array, " R"],
    active: Bool[Array, " R"],
) -> Float32[Array, "R V"]:
    """Returns the logits from which tokens are chosen; -inf where a token is masked.

    Args:
      logits: The model's logits.
      positions: Positions of the tokens to be chosen.
      active: Rows whose logits are used. Other rows may keep the model's logits.
    """
    biased, penalized, masked, early = processed_rows(state, positions, active)

    def processed() -> Float32[Array, "R V"]:
        x = _where(biased, logits, lambda x: _add_biases(x, state, biased))
        x = _where(penalized, x, lambda x: _penalize(x, state, memory, penalized))
        x = _where(masked, x, lambda x: _apply_token_mask(x, memory.allowed, masked))
        return _where(early, x, lambda x: _mask_ids(x, jnp.where(early[:, None], state.stop_ids, -1)))

    result: Float32[Array, "R V"] = jax.lax.cond(
        jnp.any(early | masked | biased | penalized), processed, lambda: logits
    )
    return result


class ProcessedRows(NamedTuple):
    """Rows that each processor changes.

    Attributes:
      penalized: Rows with penalties.
      masked: Rows with a token mask.
      early: Rows in which stop ids are masked.
    """

    biased: Bool[Array, " R"]
    penalized: Bool[Array, " R"]
    masked: Bool[Array, " R"]
    early: Bool[Array, " R"]


def processed_rows(
    state: SamplingState[Array], positions: Int32[Array, " R"], active: Bool[Array, " R"]
) -> ProcessedRows:
    """Returns which of the active rows each processor changes."""
    return ProcessedRows(
        biased=active & (state.bias_ids[:, 0] >= 0),
        penalized=active & is_penalized(state),
        masked=active & state.is_masked,
        early=active & (positions < state.min_position),
    )


def has_processors(state: SamplingState[Array], positions: Int32[Array, " R"]) -> Bool[Array, " R"]:
    """Returns which rows' logits `process_logits` may change."""
    biased, penalized, masked, early = processed_rows(state, positions, jnp.ones_like(state.is_masked))
    return early | masked | biased | penalized


def is_penalized(state: SamplingState[Array]) -> Bool[Array, " R"]:
    """Returns which rows have a penalty."""
    return (state.frequency_penalty != 0) | (state.presence_penalty != 0) | (state.repetition_penalty != 1)


def unpack_bits(words: UInt32[Array, "R W"], count: int) -> Bool[Array, "R V"]:
    """Returns bit i % 32 of word i // 32 for every i below `count`."""
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(words.shape[0], -1)[:, :count].astype(jnp.bool)


def _where(
    rows: Bool[Array, " R"], x: Float32[Array, "R V"], process: Callable[[Array], Array]
) -> Float32[Array, "R V"]:
    """Returns `process(x)` if any row is selected, else x."""
    processed: Float32[Array, "R V"] = jax.lax.cond(jnp.any(rows), process, lambda x: x, x)
    return processed


def _apply_token_mask(
    logits: Float32[Array, "R V"], allowed: UInt32[Array, "R W"], rows: Bool[Array, " R"]
) -> Float32[Array, "R V"]:
    return jnp.where(rows[:, None] & ~unpack_bits(allowed, logits.shape[1]), -jnp.inf, logits)


def _mask_ids(logits: Float32[Array, "R V"], ids: Int32[Array, "R S"]) -> Float32[Array, "R V"]:
    return logits.at[_rows(ids), _inside(ids, logits)].set(-jnp.inf, mode="drop")


def _add_biases(
    logits: Float32[Array, "R V"], state: SamplingState[Array], rows: Bool[Array, " R"]
) -> Float32[Array, "R V"]:
    ids = jnp.where(rows[:, None], state.bias_ids, -1)
    return logits.at[_rows(ids), _inside(ids, logits)].add(state.biases, mode="drop")


def _penalize(
    logits: Float32[Array, "R V"], state: SamplingState[Array], memory: TokenMemory, rows: Bool[Array, " R"]
) -> Float32[Array, "R V"]:
    """Applies frequency and presence penalties to generated tokens, and the repetition penalty also to the prompt's
    tokens.
    """
    ids = jnp.where(rows[:, None], memory.recent, -1)
    counts = jnp.zeros_like(logits).at[_rows(ids), _inside(ids, logits)].add(1.0, mode="drop")
    frequency, presence, repetition = (
        jnp.where(rows, penalty, neutral)[:, None]
        for penalty, neutral in (
            (state.frequency_penalty, 0.0),
            (state.presence_penalty, 0.0),
            (state.repetition_penalty, 1.0),
        )
    )
    repeats = rows[:, None] & ((counts > 0) | unpack_bits(memory.in_prompt, logits.shape[1]))
    logits = jnp.where(repeats, jnp.where(logits > 0, logits / repetition, logits * repetition), logits)
    return logits - frequency * counts - presence * (counts > 0)


def _rows(ids: Int32[Array, "R S"]) -> Int32[Array, "R 1"]:
    return jnp.arange(ids.shape[0])[:, None]


def _inside(ids: Int32[Array, "R S"], logits: Float32[Array, "R V"]) -> Int32[Array, "R S"]:
    """Returns ids with unused places of the list moved past the vocabulary, where scatters drop them."""
    return jnp.where(ids >= 0, ids, logits.shape[1])


def when[Result](condition: Bool[Array, ""], yes: Callable[[], Result], no: Callable[[], Result]) -> Result:
    """Returns `jax.lax.cond(condition, yes, no)` with the branches' type."""
    result: Result = jax.lax.cond(condition, yes, no)
    return result


def column_of(x: Shaped[Array, "R C"], column: Int32[Array, " R"]) -> Shaped[Array, " R"]:
    """Returns one element of every row."""
    return jnp.take_along_axis(x, column[:, None], axis=1)[:, 0]


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
