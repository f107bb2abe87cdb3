"""Logits and their argmax as XLA computes them, for every backend."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from ..matrices import Matrix
from ..precision import rounded
from ..product import product


def logits_xla(x: Float[Array, "*rows D"], weight: Matrix, cap: float | None) -> Float32[Array, "*rows V"]:
    """Returns the logits; see `logits`."""
    return soft_cap(product(x, weight), cap)


def argmax_xla(x: Float[Array, "R D"], weight: Matrix, cap: float | None) -> Int32[Array, " R"]:
    """Returns the argmax of the logits; see `argmax`."""
    return jnp.argmax(logits_xla(x, weight, cap), axis=-1).astype(jnp.int32)


def soft_cap(logits: Float32[Array, "*rows V"], cap: float | None) -> Float32[Array, "*rows V"]:
    """Returns cap * tanh(logits / cap); the logits themselves without a cap."""
    return rounded(cap * jnp.tanh(logits / cap)) if cap else logits
