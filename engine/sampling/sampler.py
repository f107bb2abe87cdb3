"""Sampler: logits processors, then temperature, truncation and the draw; one token per row, and its log-probability.

A row's token depends only on its logits, its parameters and (seed, position). Work that no row needs is skipped. Tokens
are drawn by inverse transform sampling from the truncated distribution. The candidates of a row are its few most likely
tokens. A row whose threshold is among its candidates is drawn from them; only other rows incur the cost of the whole
vocabulary. Which method a row takes depends only on that row, so its token does not depend on its neighbours.

Letters in shapes: R rows, V vocabulary, K weights to pick from, A alternatives, B named tokens, T positions of a prompt
chunk, D model width.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from ...kernels import XLA, Backend
from ...kernels.sampling import SamplingInputs, choose_tokens, reads_logits_once
from ...kernels.sampling.top_k import top_k
from ..types.sampling_params import MAX_LOGPROBS, NO_CHOICE, NO_TOKEN, NUMBER_COLUMNS, SamplingState
from .logits_processors import (
    TokenMemory,
    candidate_threshold,
    column_of,
    has_processors,
    may_fit_candidates,
    process_logits,
    processed_rows,
    truncate,
    when,
    without_truncation,
)

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

    tokens: Int32[Array, " R"]
    logprobs: Logprobs


def sample(
    logits: Float32[Array, "R V"],
    state: SamplingState[Array],
    memory: TokenMemory,
    positions: Int32[Array, " R"],
    active: Bool[Array, " R"],
    backend: Backend = XLA,
) -> Sampled:
    """Chooses a token for every row.

    Args:
      logits: The model's logits.
      positions: Positions of the tokens to be chosen, which together with a row's seed determine all its randomness.
      active: Rows whose result is read. The others cost nothing, and their result is arbitrary.
      backend: Backend of the kernels.
    """
    rows, at_a_time = logits.shape[0], backend.sampled_rows
    if at_a_time is None or rows <= at_a_time:
        return _sample(logits, state, memory, positions, active, backend)
    inputs = (logits, state, memory, positions, active)

    def sample_block(i: Array, results: Sampled) -> Sampled:
        start = jnp.minimum(i * at_a_time, rows - at_a_time)  # the last block processes some rows a second time
        take = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=at_a_time)
        block: tuple[Array, SamplingState[Array], TokenMemory, Array, Array] = jax.tree.map(take, inputs)
        own_logits, own_state, own_memory, own_positions, own_active = block
        new = _sample(own_logits, own_state, own_memory, own_positions, own_active, backend)
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        put_all: Sampled = jax.tree.map(put, results, new)
        return put_all

    nothing = Sampled(jnp.zeros(rows, jnp.int32), no_logprobs((rows,), logits.shape[1], state.named_ids.shape[1]))
    sampled: Sampled = jax.lax.fori_loop(0, -(-rows // at_a_time), sample_block, nothing)
    return sampled


def _sample(
    logits: Float32[Array, "R V"],
    state: SamplingState[Array],
    memory: TokenMemory,
    positions: Int32[Array, " R"],
    active: Bool[Array, " R"],
    backend: Backend,
) -> Sampled:
    """Chooses a token for every row, all at a time; see `sample`."""
    tokens, best = choose_tokens(
        logits,
        NUMBER_COLUMNS,
        partial(kernel_inputs, state, memory, positions, active, logits.shape[1]),
        partial(_choose, logits, state, memory, positions, active, backend),
        backend,
    )
    by_block = reads_logits_once(backend)
    logprobs_of = logprobs_by_block if by_block else partial(logprobs, backend=backend)
    wanted = jnp.any(active & state.wants_logprobs)
    return Sampled(
        _mark_invalid(tokens, best),
        when(
            wanted,
            lambda: logprobs_of(logits, tokens, state.named_ids),
            lambda: no_logprobs(logits.shape[:-1], logits.shape[-1], state.named_ids.shape[-1]),
        ),
    )


def _choose(
    logits: Float32[Array, "R V"],
    state: SamplingState[Array],
    memory: TokenMemory,
    positions: Int32[Array, " R"],
    active: Bool[Array, " R"],
    backend: Backend,
) -> tuple[Int32[Array, " R"], Float32[Array, " R"]]:
    """Returns a token of every row, and its highest logit after the logits processors."""
    processed = process_logits(logits, state, memory, positions, active)
    greedy = top_k(processed, 1, backend)[1][:, 0]  # takes a third of argmax's time on a CPU
    random = active & (state.temperature > 0)
    drawn = when(jnp.any(random), lambda: draw(processed, state, positions, random, backend), lambda: greedy)
    return jnp.where(random, drawn, greedy), column_of(processed, greedy)


def kernel_inputs(
    state: SamplingState[Array],
    memory: TokenMemory,
    positions: Int32[Array, " R"],
    active: Bool[Array, " R"],
    vocab_size: int,
) -> SamplingInputs:
    """Returns the inputs of a kernel that chooses tokens."""
    rows, random = processed_rows(state, positions, active), active & (state.temperature > 0)
    truncation = without_truncation(state, random, vocab_size)
    return SamplingInputs(
        is_active=active,
        is_random=random,
        numbers={name: getattr(truncation, name).astype(jnp.float32) for name in NUMBER_COLUMNS},
        uniform=uniform_numbers(state, positions),
        bias_ids=jnp.where(rows.biased[:, None], state.bias_ids, NO_TOKEN),
        biases=state.biases,
        stop_ids=jnp.where(rows.early[:, None], state.stop_ids, NO_TOKEN),
        is_penalized=rows.penalized,
        recent=memory.recent,
        in_prompt=memory.in_prompt,
        is_masked=rows.masked,
        allowed=memory.allowed,
    )


def needs_logits(state: SamplingState[Array], positions: Int32[Array, " R"]) -> Bool[Array, " R"]:
    """Returns which rows need more than the argmax of the model's logits."""
    return (state.temperature > 0) | state.wants_logprobs | has_processors(state, positions)


def _mark_invalid(tokens: Int32[Array, " R"], best: Float32[Array, " R"]) -> Int32[Array, " R"]:
    """Replaces tokens of rows without an allowed token, and of rows with NaN.

    Args:
      tokens: Chosen tokens.
      best: Highest logit of each row, which is NaN if any of its logits is.
    """
    tokens = jnp.where(jnp.isfinite(best), tokens, NO_TOKEN)
    return jnp.where(best == -jnp.inf, NO_CHOICE, tokens)


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


def logprobs_by_block(
    logits: Float32[Array, "R V"], chosen: Int32[Array, " R"], named: Int32[Array, "R B"]
) -> Logprobs:
    """Returns the same as `logprobs`, computed by blocks of rows, since a copy of all logits would be large."""
    size = block_size(logits.shape[0])
    result: Logprobs = jax.lax.map(lambda row: logprobs(*row), (logits, chosen, named), batch_size=size)
    return result


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
    block: int,
) -> Logprobs:
    """Returns log-probabilities of a chunk's next tokens, computed by block, since logits of a chunk would be large.

    Args:
      logprobs_of: Computes log-probabilities of `[block]` targets from `[block, D]` activations.
      hidden: Activations after the final norm.
      targets: Token after each position.
      block: Positions per block; T is a multiple of it.
    """
    blocks = (hidden.reshape(-1, block, hidden.shape[-1]), targets.reshape(-1, block))
    scored: Logprobs = jax.lax.map(lambda item: logprobs_of(*item), blocks)
    flat: Logprobs = jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), scored)
    return flat
