"""The k largest elements of rows; on GPUs without sorting long rows, as XLA does there."""

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from ..backend import XLA, Backend

_BLOCK: Final = 64
"""Elements of a block: with as many as k, a vocabulary of 256,000 has about as many blocks as candidates."""


def top_k(
    x: Float32[Array, "*rows C"], k: int, backend: Backend = XLA
) -> tuple[Float32[Array, "*rows k"], Int32[Array, "*rows k"]]:
    """Returns the k largest elements and their places; of equal ones, the first.

    The barrier hides the use of the result. Otherwise XLA for TPUs merges it with a following slice, and then
    sorts whole rows.
    """
    largest, places = jax.lax.optimization_barrier(tuple(backend.dispatch("top_k", jax.lax.top_k, x, k)))
    return largest, places


def top_k_by_blocks(x: Float32[Array, "*rows C"], k: int) -> tuple[Float32[Array, "*rows k"], Int32[Array, "*rows k"]]:
    """Returns the k largest elements and their places; of equal ones, the first.

    With k = 1, NaN is the largest; with more, the result is arbitrary in rows with NaN.

    The k blocks with the largest maxima, of equal ones the first, hold all of them: for an element of another block,
    every one of these blocks has one that is larger, or equal and before it.

    Args:
      x: Rows.
      k: Number of elements, at most C.
    """
    if k == 1:
        place = jnp.argmax(x, axis=-1, keepdims=True).astype(jnp.int32)
        return jnp.take_along_axis(x, place, axis=-1), place
    if x.shape[-1] <= k * _BLOCK:
        largest, places = jax.lax.top_k(x, k)
        return largest, places
    missing = -x.shape[-1] % _BLOCK
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)], constant_values=-jnp.inf) if missing else x
    blocks = padded.reshape(*x.shape[:-1], -1, _BLOCK)
    _, best = jax.lax.top_k(jnp.max(blocks, axis=-1), k)
    best = jnp.sort(best, axis=-1)  # equal elements keep their order
    candidates = jnp.take_along_axis(blocks, best[..., None], axis=-2).reshape(*x.shape[:-1], k * _BLOCK)
    largest, among = jax.lax.top_k(candidates, k)
    return largest, jnp.take_along_axis(best, among // _BLOCK, axis=-1) * _BLOCK + among % _BLOCK
