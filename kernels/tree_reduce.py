"""Tree reductions along the last axis, for XLA's CPU compiler, which otherwise reduces one number at a time.

They are not for sums of products: the compiler fuses those multiplications with the additions in some shapes only, so
results would depend on the number of rows.
"""

from collections.abc import Callable
from typing import Final

import jax.numpy as jnp
from jaxtyping import Array, Float

_LEAF_SIZE: Final = 32
"""Size below which XLA's own reduction is as fast."""


def sum_last(x: Float[Array, "*rows n"]) -> Float[Array, "*rows 1"]:
    """Returns the sum over the last axis, added in an order that depends on its length only."""
    return jnp.sum(_reduce_tree(x, jnp.add), axis=-1, keepdims=True)


def max_last(x: Float[Array, "*rows n"]) -> Float[Array, "*rows 1"]:
    """Returns the maximum over the last axis."""
    return jnp.max(_reduce_tree(x, jnp.maximum), axis=-1, keepdims=True)


def _reduce_tree(x: Array, join: Callable[[Array, Array], Array]) -> Array:
    while x.shape[-1] > _LEAF_SIZE and x.shape[-1] % 2 == 0:
        half = x.shape[-1] // 2
        x = join(x[..., :half], x[..., half:])
    return x
