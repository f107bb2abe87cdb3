"""Sampler: logits processors, then temperature, truncation and the draw; one token per row.

A row's token depends on its logits, its parameters and (seed, position) alone. Work that no row needs is skipped.

Letters in shapes: R rows, V vocabulary.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from ..core.sampling_params import NO_CHOICE, NO_TOKEN, SamplingState
from .array_ops import column_of, when
from .draw import draw
from .logits_processors import has_processors, process_logits
from .logprobs import Logprobs, logprobs, no_logprobs
from .state import TokenMemory


class Sampled(NamedTuple):
    """Result of one step.

    Attributes:
      tokens: Chosen tokens. `NO_CHOICE` if a row's masks leave none, `NO_TOKEN` if its logits are not numbers.
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
) -> Sampled:
    """Chooses a token for every row.

    Args:
      logits: The model's own.
      state: Sampling state of the rows.
      memory: Token memory of the rows.
      positions: Positions of the tokens to be chosen; with a row's seed they are all its randomness.
      active: Rows whose result is read. The others cost nothing, and their result is arbitrary.
    """
    processed = process_logits(logits, state, memory, positions, active)
    greedy = jax.lax.top_k(processed, 1)[1][:, 0]  # a third of what argmax takes on a CPU
    random = active & (state.temperature > 0)
    drawn = when(jnp.any(random), lambda: draw(processed, state, positions, random), lambda: greedy)
    tokens = jnp.where(random, drawn, greedy)
    wanted = jnp.any(active & state.wants_logprobs)
    return Sampled(
        _mark_invalid(tokens, column_of(processed, greedy)),
        when(
            wanted,
            lambda: logprobs(logits, tokens, state.named_ids),
            lambda: no_logprobs(logits.shape[:-1], logits.shape[-1], state.named_ids.shape[-1]),
        ),
    )


def needs_logits(state: SamplingState[Array], positions: Int32[Array, " R"]) -> Bool[Array, " R"]:
    """Returns which rows need more than the argmax of the model's logits."""
    return (state.temperature > 0) | state.wants_logprobs | has_processors(state, positions)


def _mark_invalid(tokens: Int32[Array, " R"], best: Float32[Array, " R"]) -> Int32[Array, " R"]:
    """Replaces tokens of rows without a choice or without numbers.

    Args:
      tokens: Chosen tokens.
      best: Highest logit of each row, which is NaN if any of its logits is.
    """
    tokens = jnp.where(jnp.isfinite(best), tokens, NO_TOKEN)
    return jnp.where(best == -jnp.inf, NO_CHOICE, tokens)
