"""The recurrent state of a batch of rows: a plain pytree of fixed size, whatever the length of the text behind it."""

from collections.abc import Callable
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
        taken = [_row(x, rows[i], axis) for i in range(rows.shape[0])]
        cleared = [jnp.where(fresh[i], jnp.zeros_like(t), t) for i, t in enumerate(taken)]
        return jnp.concatenate(cleared, axis)

    return _map(take, state)


def put_rows(state: ModelState, rows: Int32[Array, " R"], new: ModelState) -> ModelState:
    """Writes the rows named, one slice each, so that a donated state is updated in place; rows past the end are not."""

    def put(old: Array, axis: int, new: Array) -> Array:
        for i in range(rows.shape[0]):
            old = _put_row(old, rows[i], axis, _row(new, i, axis))
        return old

    return _map(put, state, new)


def copy_rows(state: ModelState, sources: Int32[Array, " R"], targets: Int32[Array, " R"]) -> ModelState:
    """Copies rows onto others, one pair after the other, in place if donated; targets past the end are left out.

    A copy is a fork: both rows go on from the same text, each on its own.
    """

    def copy(x: Array, axis: int) -> Array:
        for i in range(sources.shape[0]):
            x = _put_row(x, targets[i], axis, _row(x, sources[i], axis))
        return x

    return _map(copy, state)


def clear_rows(state: ModelState, rows: Int32[Array, " R"]) -> ModelState:
    """Makes the rows named as before the first token, in place if donated; rows past the end are left out."""

    def clear(x: Array, axis: int) -> Array:
        for i in range(rows.shape[0]):
            x = _put_row(x, rows[i], axis, jnp.zeros_like(_row(x, 0, axis)))
        return x

    return _map(clear, state)


def _map(change: Callable[..., Array], state: ModelState, *others: ModelState) -> ModelState:
    """Applies `change(array, axis of its rows, arrays of the others)` to every array of the state."""
    return tuple(
        type(s)(*(change(x, _row_axis(name), *rest) for name, x, *rest in zip(s._fields, s, *more, strict=True)))
        for s, *more in zip(state, *others, strict=True)
    )


def _row_axis(field: str) -> int:
    return 1 if field == "conv" else 0


def _row(x: Array, row: Int32[Array, ""] | int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, row, 1, axis)


def _put_row(x: Array, row: Int32[Array, ""], axis: int, new: Array) -> Array:
    """Rows past the end stay as they are: a slice is never clipped onto the last row."""
    new = jnp.where(row < x.shape[axis], new, _row(x, row, axis))
    return jax.lax.dynamic_update_slice_in_dim(x, new, row, axis)
