"""What every slot's request asks of the sampler, as arrays.

Letters in shapes: R rows, V vocabulary, W words of a token mask (32 tokens each), S stop ids, L biases, A alternatives,
K remembered tokens.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from ..core.output_constraint import words_of_mask
from ..core.sampling_params import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS, NO_LIMIT, NO_TOKEN, PENALTY_WINDOW


class SamplingState(NamedTuple):
    """The sampling parameters of every row (see `SamplingParams`).

    Attributes:
      seed: low and high word.
      min_position: stop ids are masked for tokens before this position.
      last_position: of the last token that may be sampled.
      stop_ids, bias_ids, named_ids: filled up with `NO_TOKEN`; `named_ids` are those of `logprob_token_ids`.
      biases: of `bias_ids`.
      is_masked: whether `TokenMemory.allowed` counts.
      wants_logprobs: whether the row's log-probabilities will be read.
    """

    temperature: Float32[Array, " R"]
    top_k: Int32[Array, " R"]
    top_p: Float32[Array, " R"]
    min_p: Float32[Array, " R"]
    typical_p: Float32[Array, " R"]
    frequency_penalty: Float32[Array, " R"]
    presence_penalty: Float32[Array, " R"]
    repetition_penalty: Float32[Array, " R"]
    bias_ids: Int32[Array, "R L"]
    biases: Float32[Array, "R L"]
    is_masked: Bool[Array, " R"]
    seed: UInt32[Array, "R 2"]
    min_position: Int32[Array, " R"]
    last_position: Int32[Array, " R"]
    stop_ids: Int32[Array, "R S"]
    named_ids: Int32[Array, "R A"]
    wants_logprobs: Bool[Array, " R"]

    @property
    def is_penalized(self) -> Bool[Array, " R"]:
        """Rows whose tokens count against coming again."""
        return (self.frequency_penalty != 0) | (self.presence_penalty != 0) | (self.repetition_penalty != 1)


class TokenMemory(NamedTuple):
    """What is known of the vocabulary's tokens, by slot; small, whatever the vocabulary and the text.

    Attributes:
      in_prompt: the tokens that stand in the prompt; of penalized rows only.
      allowed: those that may come next; of masked rows only.
      recent: the tokens generated last, the one for position p in column p mod K; of penalized rows only.
    """

    in_prompt: UInt32[Array, "R W"]
    allowed: UInt32[Array, "R W"]
    recent: Int32[Array, "R K"]


def zero_sampling_state(rows: int) -> SamplingState:
    """Rows that ask for nothing: greedy."""
    return SamplingState(
        temperature=jnp.zeros(rows, jnp.float32),
        top_k=jnp.zeros(rows, jnp.int32),
        top_p=jnp.ones(rows, jnp.float32),
        min_p=jnp.zeros(rows, jnp.float32),
        typical_p=jnp.ones(rows, jnp.float32),
        frequency_penalty=jnp.zeros(rows, jnp.float32),
        presence_penalty=jnp.zeros(rows, jnp.float32),
        repetition_penalty=jnp.ones(rows, jnp.float32),
        bias_ids=jnp.full((rows, MAX_BIASES), NO_TOKEN, jnp.int32),
        biases=jnp.zeros((rows, MAX_BIASES), jnp.float32),
        is_masked=jnp.zeros(rows, jnp.bool),
        seed=jnp.zeros((rows, 2), jnp.uint32),
        min_position=jnp.zeros(rows, jnp.int32),
        last_position=jnp.full(rows, NO_LIMIT, jnp.int32),
        stop_ids=jnp.full((rows, MAX_STOP_IDS), NO_TOKEN, jnp.int32),
        named_ids=jnp.full((rows, MAX_LOGPROBS), NO_TOKEN, jnp.int32),
        wants_logprobs=jnp.zeros(rows, jnp.bool),
    )


def zero_token_memory(rows: int, vocab_size: int) -> TokenMemory:
    """Rows that know of no token."""
    words = words_of_mask(vocab_size)
    return TokenMemory(
        in_prompt=jnp.zeros((rows, words), jnp.uint32),
        allowed=jnp.zeros((rows, words), jnp.uint32),
        recent=no_tokens(rows),
    )


def no_tokens(rows: int) -> Int32[Array, "R K"]:
    """`TokenMemory.recent` before anything has been generated."""
    return jnp.full((rows, PENALTY_WINDOW), NO_TOKEN, jnp.int32)


def remember(
    recent: Int32[Array, "M K"], tokens: Int32[Array, " R"], positions: Int32[Array, " R"], rows: Bool[Array, " R"]
) -> Int32[Array, "M K"]:
    """Notes the tokens of the first R slots, where `rows` says so, in place of the oldest."""
    row = jnp.where(rows, jnp.arange(tokens.shape[0]), recent.shape[0])
    return recent.at[row, positions % recent.shape[1]].set(tokens, mode="drop")
