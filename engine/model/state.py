"""The recurrent state of a batch of rows: a plain pytree of fixed size, whatever the length of the text behind it."""

from typing import NamedTuple

import jax
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
        count = rows.shape[0]
        taken = [jax.lax.dynamic_slice_in_dim(x, rows[i], 1, axis) for i in range(count)]
        cleared = [jnp.where(fresh[i], jnp.zeros_like(t), t) for i, t in enumerate(taken)]
        return jnp.concatenate(cleared, axis)

    return tuple(type(s)(*(take(x, _row_axis(name)) for name, x in zip(s._fields, s, strict=True))) for s in state)


def put_rows(state: ModelState, rows: Int32[Array, " R"], new: ModelState) -> ModelState:
    """Writes the rows named, one slice each, so that a donated state is updated in place; rows past the end are not."""

    def put(old: Array, new: Array, axis: int) -> Array:
        for i in range(rows.shape[0]):
            row = jax.lax.dynamic_slice_in_dim(new, i, 1, axis)
            row = jnp.where(rows[i] < old.shape[axis], row, jax.lax.dynamic_slice_in_dim(old, rows[i], 1, axis))
            old = jax.lax.dynamic_update_slice_in_dim(old, row, rows[i], axis)
        return old

    return tuple(
        type(s)(*(put(x, y, _row_axis(name)) for name, x, y in zip(s._fields, s, n, strict=True)))
        for s, n in zip(state, new, strict=True)
    )


def _row_axis(field: str) -> int:
    return 1 if field == "conv" else 0
