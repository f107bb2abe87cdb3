"""Shared code of the Pallas kernels of window attention: the online softmax over blocks of keys, and their calls."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from ..arithmetic import product_precision
from .ring import Int8Vectors, Rings, Vectors, write_ring

MASKED: Final = -2.3819763e38
"""Score of masked keys: finite, so that a query that sees no key gives numbers instead of NaN."""


class Softmax(NamedTuple):
    """State of the softmax over the keys so far.

    Attributes:
      top: Maximum score of each query.
      total: Sum of exp(score - top).
      mixed: Sum of the values weighted with exp(score - top).
    """

    top: Float32[Array, "M 1"]
    total: Float32[Array, "M 1"]
    mixed: Float32[Array, "M d"]


def no_keys(queries: int, size: int) -> Softmax:
    """Returns the state before the first key."""
    column = (queries, 1)
    return Softmax(jnp.full(column, MASKED), jnp.zeros(column, jnp.float32), jnp.zeros((queries, size), jnp.float32))


def scores_of(q: Float[Array, "M d"], keys: Float[Array, "K d"]) -> Float32[Array, "M K"]:
    """Returns the unscaled products of queries and keys, summed in float32."""
    return jax.lax.dot_general(
        q, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32, precision=product_precision(keys.dtype)
    )


def add_keys(
    softmax: Softmax, scores: Float32[Array, "M K"], visible: Bool[Array, "M K"], values: Float[Array, "K d"]
) -> Softmax:
    """Returns the state after one more block of keys. Values of masked keys are multiplied by 0, so must be finite."""
    scores = jnp.where(visible, scores, MASKED)
    top = jnp.maximum(softmax.top, jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.where(visible, jnp.exp(scores - top), 0.0)
    shrink = jnp.exp(softmax.top - top)
    mixed = jnp.dot(
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
        precision=product_precision(values.dtype),
    )
    total = softmax.total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
    return Softmax(top, total, softmax.mixed * shrink + mixed)


def block_of(place: Any, size: int) -> Any:
    """Returns place // size for place ≥ 0, without the handling of signs that `//` adds."""
    if size & (size - 1):
        return jax.lax.div(place, jnp.int32(size))
    return jax.lax.shift_right_logical(place, jnp.int32(size.bit_length() - 1))


def iota(shape: tuple[int, ...], axis: int) -> Array:
    """Returns each element's place along an axis."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def decode_with(kernel: Callable[..., Any]) -> Callable[..., tuple[Array, Rings]]:
    """Returns an implementation of `decode_attention` that calls a kernel, which returns outputs and rings."""

    def decode(q: Array, k: Vectors, v: Vectors, rings: Rings, positions: Array) -> tuple[Array, Rings]:
        return kernel(q, k, v, *rings, positions)

    return decode


def prefill_with(kernel: Callable[..., Array]) -> Callable[..., tuple[Array, Rings]]:
    """Returns an implementation of `prefill_attention` that calls a kernel, which only reads rings, and writes them."""

    def prefill(q: Array, k: Vectors, v: Vectors, rings: Rings, positions: Array) -> tuple[Array, Rings]:
        out = kernel(q, k, v, *rings, positions)
        return out, write_ring(rings, k, v, positions, positions[:, 0])

    return prefill


def takes_floats(q: Array, k: Vectors, *others: Any) -> bool:
    """Returns whether keys are in a floating-point dtype."""
    return not isinstance(k, Int8Vectors)
