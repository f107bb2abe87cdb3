"""A softmax that runs along blocks of keys, for the Pallas kernels."""

from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from ..precision import product_precision

MASKED: Final = -2.3819763e38
"""Finite, so that a query that sees nothing gives numbers and not NaN."""


class Softmax(NamedTuple):
    """Over the keys so far: each query's highest score, its weights' sum and the values they mix, both not normed."""

    top: Float32[Array, "M 1"]
    total: Float32[Array, "M 1"]
    mixed: Float32[Array, "M d"]


def no_keys(queries: int, size: int) -> Softmax:
    """Where a softmax begins."""
    column = (queries, 1)
    return Softmax(jnp.full(column, MASKED), jnp.zeros(column, jnp.float32), jnp.zeros((queries, size), jnp.float32))


def scores_of(q: Float[Array, "M d"], keys: Float[Array, "K d"]) -> Float32[Array, "M K"]:
    """Products of queries and keys, not scaled."""
    return jax.lax.dot_general(
        q, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32, precision=product_precision(keys.dtype)
    )


def add_keys(
    softmax: Softmax, scores: Float32[Array, "M K"], visible: Bool[Array, "M K"], values: Float[Array, "K d"]
) -> Softmax:
    """With one more block of keys; values that are not visible count as 0 * value, so they must be finite."""
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
