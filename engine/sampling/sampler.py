"""Sampler: logits processors, then temperature, truncation and the draw; one token per row, and its log-probability.

Logits processors are biases, penalties and token masks. Masks come last, so that nothing is computed with the -inf of a
masked token, which can therefore not become NaN or allowed. A row without processors keeps its logits bit for bit,
independent of the processors of other rows.

Truncation is top-k, top-p, min-p and typical-p, in this order. A token's weight is exp((logit - highest logit) /
temperature), so the most likely token weighs exactly 1. Truncation keeps the weights at or above a threshold, so that
tokens of equal weight are kept or dropped together. typical-p is a threshold on the distance between a token's surprise
and the entropy. The vocabulary is never sorted: thresholds are found among a row's most likely tokens, its candidates,
or by bisection over the bits of a float32.

Tokens are drawn by inverse transform sampling from the truncated distribution. A row's token depends only on its
logits, its parameters and (seed, position). A row whose threshold is among its candidates is drawn from them; only
other rows incur the cost of the whole vocabulary. Which method a row takes depends only on that row, so its token does
not depend on its neighbours. Work that no row needs is skipped.

Letters in shapes: R rows, M slots, V vocabulary, W words of a token mask (32 tokens each), K = `PENALTY_WINDOW`, or
weights to pick from; S ids of a list, C candidates, A alternatives, B named tokens, T positions of a prompt chunk, D
model width.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped, UInt32

from ...kernels import XLA, Backend
from ...kernels.sampling import SamplingInputs, choose_tokens, reads_logits_once, top_k
from ..types.output_constraint import words_of_mask
from ..types.sampling_params import (
    MAX_LOGPROBS,
    NO_CHOICE,
    NO_TOKEN,
    NUMBER_COLUMNS,
    PENALTY_WINDOW,
    SAMPLING_COLUMNS,
    SamplingState,
)

jax.tree_util.register_dataclass(SamplingState)

type RowInts = Int32[Array, " R"]

type RowFlags = Bool[Array, " R"]

type RowFloats = Float32[Array, " R"]
"""A number of every row."""

type TokenFloats = Float32[Array, "R V"]
"""A number of every token of every row: a logit or a weight."""


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
    recent: Int32[Array, "M K"], tokens: RowInts, positions: RowInts, rows: RowFlags
) -> Int32[Array, "M K"]:
    """Returns `recent` with a new token for every slot that `rows` selects among the first R, instead of the oldest."""
    row = jnp.where(rows, jnp.arange(tokens.shape[0]), recent.shape[0])
    return recent.at[row, positions % recent.shape[1]].set(tokens, mode="drop")


_ONE_BITS: Final = 0x3F800000
"""Bits of 1.0, the largest weight. Bits of non-negative floats have the order of the floats."""

_INFINITY_BITS: Final = 0x7F800000
"""Bits of infinity, the largest distance."""

type _IsEnough = Callable[[Bool[Array, "R V"]], RowFlags]
"""Returns whether a set of tokens is large enough for a row."""


class SamplingRows(NamedTuple):
    """Rows for which tokens are chosen.

    Attributes:
      state: Sampling parameters.
      memory: Tokens that penalties and masks refer to.
      positions: Positions of the tokens to be chosen, which together with a row's seed determine all its randomness.
      active: Rows whose result is read. The others cost nothing, and their result is arbitrary.
    """

    state: SamplingState[Array]
    memory: TokenMemory
    positions: RowInts
    active: RowFlags

    @property
    def random(self) -> RowFlags:
        """Rows whose tokens are drawn."""
        return self.active & (self.state.temperature > 0)

    @property
    def processed(self) -> "ProcessedRows":
        """Rows that each processor changes."""
        return ProcessedRows(
            biased=self.active & (self.state.bias_ids[:, 0] >= 0),
            penalized=self.active & is_penalized(self.state),
            masked=self.active & self.state.is_masked,
            early=self.active & (self.positions < self.state.min_position),
        )


def process_logits(logits: TokenFloats, rows: SamplingRows) -> TokenFloats:
    """Returns the logits from which tokens are chosen; -inf where a token is masked.

    Rows that are not active may keep the model's logits.
    """
    state, memory, changed = rows.state, rows.memory, rows.processed
    biased, penalized, masked, early = changed

    def add_biases(x: TokenFloats) -> TokenFloats:
        ids = jnp.where(biased[:, None], state.bias_ids, -1)
        return x.at[_places(ids, x)].add(state.biases, mode="drop")

    def apply_token_mask(x: TokenFloats) -> TokenFloats:
        return jnp.where(masked[:, None] & ~unpack_bits(memory.allowed, x.shape[1]), -jnp.inf, x)

    def mask_stop_ids(x: TokenFloats) -> TokenFloats:
        ids = jnp.where(early[:, None], state.stop_ids, -1)
        return x.at[_places(ids, x)].set(-jnp.inf, mode="drop")

    def processed() -> TokenFloats:
        x = _where(biased, logits, add_biases)
        x = _where(penalized, x, lambda x: _penalize(x, state, memory, penalized))
        x = _where(masked, x, apply_token_mask)
        return _where(early, x, mask_stop_ids)

    return jax.lax.cond(jnp.any(changed.any), processed, lambda: logits)


class ProcessedRows(NamedTuple):
    """Rows that each processor changes.

    Attributes:
      penalized: Rows with penalties.
      masked: Rows with a token mask.
      early: Rows in which stop ids are masked.
    """

    biased: RowFlags
    penalized: RowFlags
    masked: RowFlags
    early: RowFlags

    @property
    def any(self) -> RowFlags:
        """Rows that any processor changes."""
        return self.early | self.masked | self.biased | self.penalized


def is_penalized(state: SamplingState[Array]) -> RowFlags:
    """Returns which rows have a penalty."""
    return (state.frequency_penalty != 0) | (state.presence_penalty != 0) | (state.repetition_penalty != 1)


def unpack_bits(words: UInt32[Array, "R W"], count: int) -> Bool[Array, "R V"]:
    """Returns bit i % 32 of word i // 32 for every i below `count`."""
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(words.shape[0], -1)[:, :count].astype(jnp.bool)


def _where(rows: RowFlags, x: TokenFloats, process: Callable[[Array], Array]) -> TokenFloats:
    """Returns `process(x)` if any row is selected, else x."""
    return jax.lax.cond(jnp.any(rows), process, lambda x: x, x)


def _penalize(logits: TokenFloats, state: SamplingState[Array], memory: TokenMemory, rows: RowFlags) -> TokenFloats:
    """Applies frequency and presence penalties to generated tokens, and the repetition penalty also to the prompt's
    tokens.
    """
    ids = jnp.where(rows[:, None], memory.recent, -1)
    counts = jnp.zeros_like(logits).at[_places(ids, logits)].add(1.0, mode="drop")
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


def _places(ids: Int32[Array, "R S"], x: TokenFloats) -> tuple[Array, Array]:
    """Returns indices of the ids of each row, with unused places of the list past the vocabulary, where scatters drop
    them.
    """
    return jnp.arange(ids.shape[0])[:, None], jnp.where(ids >= 0, ids, x.shape[1])


def column_of(x: Shaped[Array, "R C"], column: RowInts) -> Shaped[Array, " R"]:
    """Returns one element of every row."""
    return jnp.take_along_axis(x, column[:, None], axis=1)[:, 0]


def without_truncation(state: SamplingState[Array], rows: RowFlags, vocab_size: int) -> SamplingState[Array]:
    """Returns the state with `top_k` within the vocabulary, and temperature 1 and no truncation outside `rows`."""
    return replace(
        state,
        temperature=jnp.where(rows, state.temperature, 1.0),
        top_k=jnp.where(rows, jnp.minimum(state.top_k, vocab_size), 0),
        top_p=jnp.where(rows, state.top_p, 1.0),
        typical_p=jnp.where(rows, state.typical_p, 1.0),
    )


def candidate_threshold(
    weights: Float32[Array, "R C"], state: SamplingState[Array], total: Callable[[], RowFloats]
) -> RowFloats:
    """Returns the weight below which top-k, top-p and min-p drop tokens; 0 if it is below all candidates.

    Args:
      weights: Weights of the candidates, in descending order.
      total: Computes the sum of all weights of the vocabulary.
    """
    count = weights.shape[1]
    cut_k = jnp.where(state.top_k > count, 0.0, column_of(weights, jnp.maximum(state.top_k, 1) - 1))
    cut_k = jnp.where(state.top_k > 0, cut_k, 0.0)
    kept = jnp.where(weights >= cut_k[:, None], weights, 0.0)
    mass = jax.lax.cond(
        jnp.any((state.top_p < 1) & (state.top_k == 0)), total, lambda: jnp.ones(weights.shape[0], jnp.float32)
    )
    mass = jnp.where(state.top_k > 0, jnp.sum(kept, axis=-1), mass)
    enough = jnp.cumsum(kept, axis=-1) >= (state.top_p * mass)[:, None]
    has_cut = jnp.any(enough, axis=-1) & (state.top_p < 1)
    cut_p = jnp.where(has_cut, column_of(weights, jnp.argmax(enough, axis=-1)), 0.0)
    return jnp.maximum(jnp.maximum(cut_k, cut_p), state.min_p)


def truncate(weights: TokenFloats, state: SamplingState[Array], rows: RowFlags) -> TokenFloats:
    """Returns the weights, with 0 for dropped tokens; arbitrary outside `rows`."""
    top_k, top_p = jnp.where(rows, state.top_k, 0), jnp.where(rows, state.top_p, 1.0)
    weights = jax.lax.cond(jnp.any(top_k > 0), lambda: _keep_top_k(weights, top_k), lambda: weights)
    weights = jax.lax.cond(jnp.any(top_p < 1), lambda: _keep_top_p(weights, top_p), lambda: weights)
    weights = jnp.where(weights >= state.min_p[:, None], weights, 0.0)
    typical_p = jnp.where(rows, state.typical_p, 1.0)
    return jax.lax.cond(jnp.any(typical_p < 1), lambda: _keep_typical(weights, typical_p), lambda: weights)


def _keep_top_k(weights: TokenFloats, k: RowInts) -> TokenFloats:
    """Keeps the k largest weights and ties of the last; all if k is 0."""
    full = jnp.where(k > 0, jnp.minimum(k, weights.shape[1]), weights.shape[1])
    return _keep_largest(weights, lambda kept: jnp.sum(kept, axis=-1) >= full)


def _keep_top_p(weights: TokenFloats, p: RowFloats) -> TokenFloats:
    """Keeps the smallest set of largest weights whose sum reaches the share p of all, and ties of the last."""
    cut = _keep_largest(weights, _reaches(weights, p))
    return jnp.where(p[:, None] < 1, cut, weights)


def _keep_typical(weights: TokenFloats, p: RowFloats) -> TokenFloats:
    """Keeps the tokens whose surprise is nearest to the entropy, until they reach the share p, and ties of the last."""
    total = jnp.sum(weights, axis=-1, keepdims=True)
    surprise = jnp.where(weights > 0, jnp.log(total) - jnp.log(weights), jnp.inf)
    entropy = jnp.sum(jnp.where(weights > 0, weights * surprise, 0.0), axis=-1, keepdims=True) / total
    distance = jnp.where(weights > 0, jnp.abs(surprise - entropy), jnp.inf)
    nearness = _INFINITY_BITS - jax.lax.bitcast_convert_type(distance, jnp.int32)
    threshold = _threshold(nearness, _INFINITY_BITS, _reaches(weights, p))
    kept = nearness >= jnp.minimum(threshold, jnp.max(nearness, axis=-1))[:, None]  # p may be rounded to 0
    return jnp.where((p[:, None] < 1) & ~kept, 0.0, weights)


def _reaches(weights: TokenFloats, p: RowFloats) -> _IsEnough:
    """Returns a test whether the weights of kept tokens sum to the share p of all."""
    mass = p * jnp.sum(weights, axis=-1)
    return lambda kept: jnp.sum(jnp.where(kept, weights, 0.0), axis=-1) >= mass


def _keep_largest(weights: TokenFloats, is_enough: _IsEnough) -> TokenFloats:
    """Zeroes the weights below the highest threshold that keeps enough."""
    bits = jax.lax.bitcast_convert_type(weights, jnp.int32)
    return jnp.where(bits >= _threshold(bits, _ONE_BITS, is_enough)[:, None], weights, 0.0)


def _threshold(bits: Int32[Array, "R V"], most: int, is_enough: _IsEnough) -> RowInts:
    """Returns the highest number from 0 to `most` for which enough bits are at or above it, found by bisection."""

    def halve(_: Int32[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # low keeps enough, high does not
        middle = low + (high - low) // 2
        enough = is_enough(bits >= middle[:, None])
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low: RowInts = jnp.zeros(bits.shape[0], jnp.int32)
    low, _ = jax.lax.fori_loop(0, 31, halve, (low, jnp.full_like(low, most + 1)))
    return low


_CANDIDATES: Final = 64
"""Number of most likely tokens that are examined first."""

_LANE: Final = 128
"""Weights that are summed together before one of them is picked."""

_BLOCK: Final = 64
"""Maximum number of rows whose log-probabilities are computed together if memory is scarce."""


class Logprobs(NamedTuple):
    """Natural log-probabilities under the model's logits; zeros if no row wants them.

    Attributes:
      chosen: Log-probabilities of the chosen tokens.
      top_ids: The most likely tokens, best first.
      top: Log-probabilities of `top_ids`.
      named: Log-probabilities of the tokens that the row names.
    """

    chosen: Float32[Array, "*rows"]
    top_ids: Int32[Array, "*rows A"]
    top: Float32[Array, "*rows A"]
    named: Float32[Array, "*rows B"]


class Sampled(NamedTuple):
    """Result of one step.

    Attributes:
      tokens: Chosen tokens. `NO_CHOICE` if a row's masks leave none, `NO_TOKEN` if its logits are NaN.
      logprobs: Their log-probabilities.
    """

    tokens: RowInts
    logprobs: Logprobs


def sample(logits: TokenFloats, rows: SamplingRows, backend: Backend = XLA) -> Sampled:
    """Chooses a token for every row.

    If the backend samples some rows at a time, nothing is computed for inactive rows at the end.

    Args:
      logits: The model's logits.
      rows: The rows.
      backend: Backend of the kernels.
    """
    count, at_a_time = logits.shape[0], backend.sampled_rows
    if at_a_time is None or count <= at_a_time:
        return _sample(logits, rows, backend)

    def sample_block(i: Array, results: Sampled) -> Sampled:
        start = jnp.minimum(i * at_a_time, count - at_a_time)  # the last block processes some rows a second time
        take = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=at_a_time)
        block: tuple[Array, SamplingRows] = jax.tree.map(take, (logits, rows))
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, results, _sample(*block, backend))

    num_named = rows.state.named_ids.shape[1]
    nothing = Sampled(jnp.zeros(count, jnp.int32), no_logprobs((count,), logits.shape[1], num_named))
    num_used = jnp.max(jnp.where(rows.active, jnp.arange(1, count + 1), 0))
    return jax.lax.fori_loop(0, -(-num_used // at_a_time), sample_block, nothing)


def _sample(logits: TokenFloats, rows: SamplingRows, backend: Backend) -> Sampled:
    """Chooses a token for every row, all at a time; see `sample`."""
    tokens, best = choose_tokens(
        logits,
        NUMBER_COLUMNS,
        partial(_kernel_inputs, rows, logits.shape[1]),
        partial(_choose, logits, rows, backend),
        backend,
    )
    named, wanted = rows.state.named_ids, jnp.any(rows.active & rows.state.wants_logprobs)
    logprobs_of = logprobs_by_block if reads_logits_once(backend) else partial(logprobs, backend=backend)
    return Sampled(
        _mark_invalid(tokens, best),
        jax.lax.cond(
            wanted,
            lambda: logprobs_of(logits, tokens, named),
            lambda: no_logprobs(logits.shape[:-1], logits.shape[-1], named.shape[-1]),
        ),
    )


def _choose(logits: TokenFloats, rows: SamplingRows, backend: Backend) -> tuple[RowInts, RowFloats]:
    """Returns a token of every row, and its highest logit after the logits processors."""
    processed = process_logits(logits, rows)
    greedy = top_k(processed, 1, backend)[1][:, 0]  # takes a third of argmax's time on a CPU
    random = rows.random
    drawn = jax.lax.cond(jnp.any(random), lambda: _draw(processed, rows, random, backend), lambda: greedy)
    return jnp.where(random, drawn, greedy), column_of(processed, greedy)


def _kernel_inputs(rows: SamplingRows, vocab_size: int) -> SamplingInputs:
    """Returns the inputs of a kernel that chooses tokens."""
    state, memory, processed, random = rows.state, rows.memory, rows.processed, rows.random
    truncation = without_truncation(state, random, vocab_size)
    return SamplingInputs(
        is_active=rows.active,
        is_random=random,
        numbers={name: getattr(truncation, name).astype(jnp.float32) for name in NUMBER_COLUMNS},
        uniform=uniform_numbers(state, rows.positions),
        bias_ids=jnp.where(processed.biased[:, None], state.bias_ids, NO_TOKEN),
        biases=state.biases,
        stop_ids=jnp.where(processed.early[:, None], state.stop_ids, NO_TOKEN),
        is_penalized=processed.penalized,
        recent=memory.recent,
        in_prompt=memory.in_prompt,
        is_masked=processed.masked,
        allowed=memory.allowed,
    )


def needs_logits(rows: SamplingRows) -> RowFlags:
    """Returns which rows need more than the argmax of the model's logits."""
    state = rows.state
    drawn_or_scored = (state.temperature > 0) | state.wants_logprobs
    return drawn_or_scored | rows._replace(active=jnp.ones_like(state.is_masked)).processed.any


def _mark_invalid(tokens: RowInts, best: RowFloats) -> RowInts:
    """Replaces tokens of rows without an allowed token, and of rows with NaN.

    Args:
      tokens: Chosen tokens.
      best: Highest logit of each row, which is NaN if any of its logits is.
    """
    tokens = jnp.where(jnp.isfinite(best), tokens, NO_TOKEN)
    return jnp.where(best == -jnp.inf, NO_CHOICE, tokens)


def _draw(logits: TokenFloats, rows: SamplingRows, random: RowFlags, backend: Backend) -> RowInts:
    """Returns a token per row, drawn from the truncated softmax(logits / temperature).

    Args:
      logits: Processed logits.
      rows: The rows.
      random: Rows to draw for; the token of other rows is arbitrary.
      backend: Backend of the kernels.
    """
    uniform = uniform_numbers(rows.state, rows.positions)
    state = without_truncation(rows.state, random, logits.shape[1])
    has_thresholds = (state.top_k > 0) | (state.top_p < 1) | (state.min_p > 0)
    is_cut = random & has_thresholds & (state.typical_p >= 1)  # rows that may keep only candidates
    tokens, found = jax.lax.cond(
        jnp.any(is_cut),
        lambda: draw_from_candidates(logits, state, uniform, backend),
        lambda: (jnp.zeros(logits.shape[0], jnp.int32), jnp.zeros(logits.shape[0], jnp.bool)),
    )
    rest = random & ~(found & is_cut)
    return jax.lax.cond(
        jnp.any(rest),
        lambda: jnp.where(rest, _draw_from_vocabulary(logits, state, uniform, rest), tokens),
        lambda: tokens,
    )


def uniform_numbers(state: SamplingState[Array], positions: RowInts) -> RowFloats:
    """Returns the random number of every row: from 0, below 1, a function of its seed and position alone."""
    keys = jax.vmap(lambda seed, p: jax.random.fold_in(jax.random.wrap_key_data(seed), p))(state.seed, positions)
    return jax.vmap(jax.random.uniform)(keys)


def draw_from_candidates(
    logits: TokenFloats, state: SamplingState[Array], uniform: RowFloats, backend: Backend = XLA
) -> tuple[RowInts, RowFlags]:
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
    logits: TokenFloats, state: SamplingState[Array], uniform: RowFloats, rows: RowFlags
) -> RowInts:
    """Returns a token of the whole vocabulary; arbitrary outside `rows`."""
    below_best = logits - jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(below_best / state.temperature[:, None])
    return invert(truncate(weights, state, rows), uniform)


def invert(weights: TokenFloats, uniform: RowFloats) -> RowInts:
    """Returns the token at which the running sum of weights exceeds the share `uniform` of their total.

    The lane is picked first and then the token in it. The token of a row without weights is arbitrary.
    """
    rows, vocab = weights.shape
    lanes = jnp.pad(weights, ((0, 0), (0, -vocab % _LANE))).reshape(rows, -1, _LANE)
    sums = jnp.sum(lanes, axis=-1)
    index, left = _pick(sums, uniform * jnp.sum(sums, axis=-1))
    within, _ = _pick(jnp.take_along_axis(lanes, index[:, None, None], axis=1)[:, 0], left)
    return jnp.minimum(index * _LANE + within, vocab - 1)


def _pick(weights: Float32[Array, "R K"], target: RowFloats) -> tuple[RowInts, RowFloats]:
    """Returns the first index whose running sum exceeds the target, never one of weight 0, and the remainder of the
    target.
    """
    running = jnp.cumsum(weights, axis=-1)
    hit = (running > target[:, None]) & (weights > 0)
    last = weights.shape[1] - 1 - jnp.argmax(weights[:, ::-1] > 0, axis=-1)  # if rounding leaves a remainder
    index = jnp.where(jnp.any(hit, axis=-1), jnp.argmax(hit, axis=-1), last)
    before = jnp.take_along_axis(running - weights, index[:, None], axis=-1)[:, 0]
    return index.astype(jnp.int32), target - before


def logprobs(
    logits: Float32[Array, "*rows V"],
    chosen: Int32[Array, "*rows"],
    named: Int32[Array, "*rows B"],
    backend: Backend = XLA,
) -> Logprobs:
    """Returns log softmax at the chosen, the most likely and the named tokens.

    Args:
      logits: The model's logits.
      chosen: Chosen tokens.
      named: Named tokens; the result is arbitrary at unused places of the list.
      backend: Backend of the kernels.
    """
    count = min(MAX_LOGPROBS, logits.shape[-1])
    top, top_ids = top_k(logits, count, backend)
    norm = top[..., :1] + jnp.log(jnp.sum(jnp.exp(logits - top[..., :1]), axis=-1, keepdims=True))
    own, others = (jnp.take_along_axis(logits, ids, axis=-1) - norm for ids in (chosen[..., None], named))
    return Logprobs(own[..., 0], top_ids, top - norm, others)


def logprobs_by_block(logits: TokenFloats, chosen: RowInts, named: Int32[Array, "R B"]) -> Logprobs:
    """Returns the same as `logprobs`, computed by blocks of rows, since a copy of all logits would be large."""
    size = block_size(logits.shape[0])
    return jax.lax.map(lambda row: logprobs(*row), (logits, chosen, named), batch_size=size)


def block_size(rows: int) -> int:
    """Returns the size of equal blocks, a multiple of 8 if there is one: a shorter last block would copy all logits."""
    sizes = [size for size in range(1, _BLOCK + 1) if rows % size == 0]
    return max(sizes, key=lambda size: (size % 8 == 0, size))


def no_logprobs(rows: tuple[int, ...], vocab_size: int, num_named: int) -> Logprobs:
    """Returns zeros in the shapes of `logprobs`, for a step in which no row wants them."""
    alternatives = (*rows, min(MAX_LOGPROBS, vocab_size))
    return Logprobs(
        jnp.zeros(rows, jnp.float32),
        jnp.zeros(alternatives, jnp.int32),
        jnp.zeros(alternatives, jnp.float32),
        jnp.zeros((*rows, num_named), jnp.float32),
    )


def score(
    logprobs_of: Callable[[Array, Array], Logprobs],
    hidden: Float[Array, "T D"],
    targets: Int32[Array, " T"],
    count: Int32[Array, ""] | int,
    block: int,
    vocab_size: int,
) -> Logprobs:
    """Returns log-probabilities of a chunk's next tokens, computed by block, since logits of a chunk would be large.

    Args:
      logprobs_of: Computes log-probabilities of `[block]` targets from `[block, D]` activations.
      hidden: Activations after the final norm.
      targets: Token after each position.
      count: Number of blocks; the results of later ones are zeros.
      block: Positions per block; T is a multiple of it.
    """

    def score_block(index: Array, scored: Logprobs) -> Logprobs:
        start = index * block
        own = (jax.lax.dynamic_slice_in_dim(x, start, block) for x in (hidden, targets))
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return jax.tree.map(put, scored, logprobs_of(*own))

    return jax.lax.fori_loop(0, count, score_block, no_logprobs(targets.shape, vocab_size, 0))
