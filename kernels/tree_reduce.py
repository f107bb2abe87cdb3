"""Reductions along the last axis by halves, for XLA's CPU compiler, whose own take one number at a time.

Not for sums of products, which it may contract with these additions in some shapes and not in others: their results
would then depend on the number of rows.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

_FEW = 32
"""So many numbers that there is nothing left to gain."""


def sum_last(x: Float[Array, "*rows n"]) -> Float[Array, "*rows 1"]:
    """The sum over the last axis, always in the same order."""
    return jnp.sum(_halve(x, jnp.add), axis=-1, keepdims=True)


def max_last(x: Float[Array, "*rows n"]) -> Float[Array, "*rows 1"]:
    """The largest along the last axis."""
    return jnp.max(_halve(x, jnp.maximum), axis=-1, keepdims=True)


def _halve(x: Array, join: Callable[[Array, Array], Array]) -> Array:
    while x.shape[-1] > _FEW and x.shape[-1] % 2 == 0:
        half = x.shape[-1] // 2
        x = join(x[..., :half], x[..., half:])
    return x
