"""What requests do to the model's logits before a token is chosen: biases, penalties, masks, in this order.

Masks come last: nothing is computed with the -inf of a masked token, so a masked token cannot become NaN or allowed.

A row that asks for nothing keeps its logits bit for bit, whatever the rows beside it ask for; and where no row asks,
nothing is computed. Letters in shapes: see `sampling_state`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt32

from .state import SamplingState, TokenMemory


def adjust(
    logits: Float32[Array, "R V"],
    state: SamplingState,
    memory: TokenMemory,
    positions: Int32[Array, " R"],
    active: Bool[Array, " R"],
) -> Float32[Array, "R V"]:
    """The logits from which tokens are chosen.

    Args:
      logits: the model's own.
      state, memory: of each row.
      positions: of the tokens to be chosen.
      active: rows that count.
    """
    early = active & (positions < state.min_position)
    masked = active & state.is_masked
    biased = active & (state.bias_ids[:, 0] >= 0)
    penalized = active & state.is_penalized

    def adjusted() -> Float32[Array, "R V"]:
        x = _where(biased, logits, lambda x: _add_biases(x, state, biased))
        x = _where(penalized, x, lambda x: _penalize(x, state, memory, penalized))
        x = _where(masked, x, lambda x: _keep_allowed(x, memory.allowed, masked))
        return _where(early, x, lambda x: _drop_ids(x, jnp.where(early[:, None], state.stop_ids, -1)))

    result: Float32[Array, "R V"] = jax.lax.cond(jnp.any(early | masked | biased | penalized), adjusted, lambda: logits)
    return result


def is_adjusted(state: SamplingState, positions: Int32[Array, " R"]) -> Bool[Array, " R"]:
    """Rows whose logits `adjust` may change."""
    return (positions < state.min_position) | state.is_masked | (state.bias_ids[:, 0] >= 0) | state.is_penalized


def _where(
    rows: Bool[Array, " R"], x: Float32[Array, "R V"], change: Callable[[Array], Array]
) -> Float32[Array, "R V"]:
    """The change, if it concerns any row."""
    changed: Float32[Array, "R V"] = jax.lax.cond(jnp.any(rows), change, lambda x: x, x)
    return changed


def _keep_allowed(
    logits: Float32[Array, "R V"], allowed: UInt32[Array, "R W"], rows: Bool[Array, " R"]
) -> Float32[Array, "R V"]:
    return jnp.where(rows[:, None] & ~unpack_bits(allowed, logits.shape[1]), -jnp.inf, logits)


def unpack_bits(words: UInt32[Array, "R W"], count: int) -> Bool[Array, "R V"]:
    """Bit i % 32 of word i // 32, for every i below `count`."""
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(words.shape[0], -1)[:, :count].astype(jnp.bool)


def _drop_ids(logits: Float32[Array, "R V"], ids: Int32[Array, "R S"]) -> Float32[Array, "R V"]:
    return logits.at[_rows(ids), _inside(ids, logits)].set(-jnp.inf, mode="drop")


def _add_biases(logits: Float32[Array, "R V"], state: SamplingState, rows: Bool[Array, " R"]) -> Float32[Array, "R V"]:
    ids = jnp.where(rows[:, None], state.bias_ids, -1)
    return logits.at[_rows(ids), _inside(ids, logits)].add(state.biases, mode="drop")


def _penalize(
    logits: Float32[Array, "R V"], state: SamplingState, memory: TokenMemory, rows: Bool[Array, " R"]
) -> Float32[Array, "R V"]:
    """Frequency and presence penalties, of generated tokens; the repetition penalty counts the prompt's too."""
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
    """Ids that fill up lists are put past the vocabulary, where they are dropped."""
    return jnp.where(ids >= 0, ids, logits.shape[1])
