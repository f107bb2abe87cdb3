"""Sampler: logits processors, then temperature, truncation and the draw; one token per row.

A row's token depends only on its logits, its parameters and (seed, position). Work that no row needs is skipped.

Letters in shapes: R rows, V vocabulary.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from ...kernels import XLA, Backend
from ...kernels.sampling import SamplingInputs, choose_tokens, reads_logits_once
from ...kernels.sampling.top_k import top_k
from ..types.sampling_params import NO_CHOICE, NO_TOKEN, NUMBER_COLUMNS, SamplingState
from .array_ops import column_of, when
from .draw import draw, uniform_numbers
from .logits_processors import has_processors, process_logits, processed_rows
from .logprobs import Logprobs, logprobs, logprobs_by_block, no_logprobs
from .state import TokenMemory
from .truncation import without_truncation


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
