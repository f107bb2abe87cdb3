"""The recurrent state of a batch of rows: a plain pytree of fixed size, whatever the length of the text behind it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from .config import ModelConfig


class RecurrentState(NamedTuple):
    """Of a recurrent block: h after the last token, and the convolution's last K - 1 inputs, oldest first.

    The rows of `conv` stand second: a tap is then one contiguous `[B, E]` array on a TPU.
    """

    h: Float32[Array, "B E"]
    conv: Float[Array, "K1 B E"]


class AttentionState(NamedTuple):
    """Of an attention block: keys (after RoPE) and values of the last W tokens; position p lies in row p mod W."""

    keys: Float[Array, "B W d"]
    values: Float[Array, "B W d"]


type LayerState = RecurrentState | AttentionState
type ModelState = tuple[LayerState, ...]


def zero_state(config: ModelConfig, rows: int, dtype: jnp.dtype) -> ModelState:
    """The state before the first token; `dtype` is the activations' type."""

    def layer(block: str) -> LayerState:
        if block == "attention":
            ring = (rows, config.window, config.head_dim)
            return AttentionState(jnp.zeros(ring, dtype), jnp.zeros(ring, dtype))
        h = jnp.zeros((rows, config.lru_width), jnp.float32)
        return RecurrentState(h, jnp.zeros((config.conv_width - 1, rows, config.lru_width), dtype))

    return tuple(layer(block) for block in config.block_types)


def take_rows(state: ModelState, rows: Int32[Array, " R"], fresh: Bool[Array, " R"]) -> ModelState:
    """Copies the rows named; a fresh one is cleared, so that nothing of its last owner can be read."""

    def take(x: Array, axis: int) -> Array:
        taken = jnp.take(x, rows, axis=axis)
        mask = fresh.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        return jnp.where(mask, jnp.zeros_like(taken), taken)

    return tuple(
        RecurrentState(take(s.h, 0), take(s.conv, 1))
        if isinstance(s, RecurrentState)
        else AttentionState(take(s.keys, 0), take(s.values, 0))
        for s in state
    )


def put_rows(state: ModelState, rows: Int32[Array, " R"], new: ModelState) -> ModelState:
    """Writes the rows named; an index past the end is dropped."""

    def put(old: LayerState, new: LayerState) -> LayerState:
        if isinstance(old, RecurrentState) and isinstance(new, RecurrentState):
            h = old.h.at[rows].set(new.h, mode="drop")
            return RecurrentState(h, old.conv.at[:, rows].set(new.conv, mode="drop"))
        assert isinstance(old, AttentionState)
        assert isinstance(new, AttentionState)
        return AttentionState(
            old.keys.at[rows].set(new.keys, mode="drop"), old.values.at[rows].set(new.values, mode="drop")
        )

    return tuple(put(o, n) for o, n in zip(state, new, strict=True))
