"""Arrays on the device that the sampler reads: sampling state and token memory, with one row per slot.

Letters in shapes: R rows, M slots, V vocabulary, W words of a token mask (32 tokens each), K = `PENALTY_WINDOW`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, UInt32

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
