"""Rounding of vectors to int8: the largest absolute value of each becomes 127, and halves go to the even number."""

from typing import Final

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

from .tree_reduce import max_last

LARGEST: Final = 127.0
"""Largest absolute value of an element; -128 is not used, so that rounding is symmetric."""

STEP: Final = 1.0 / LARGEST
"""Scale of a vector whose largest absolute value is 1."""

FLOOR: Final = 1e-30
"""Least absolute maximum of a vector in computing its scale, by which elements are divided."""


def round_to_int8(x: Float[Array, "*rows n"]) -> tuple[Int8[Array, "*rows n"], Float32[Array, "*rows 1"]]:
    """Returns the rounded elements of each vector, and its scale: element * scale is close to x.

    A vector with a NaN or an infinity gets a scale that is not finite.
    """
    wide = x.astype(jnp.float32)
    largest = jnp.maximum(max_last(jnp.abs(wide)), FLOOR)
    return jnp.round(wide * (LARGEST / largest)).astype(jnp.int8), largest * STEP
