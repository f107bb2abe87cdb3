"""RMSNorm as XLA computes it, for every backend."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ..precision import before_sum


def rms_norm_xla(x: Float[Array, "*rows D"], scale: Float32[Array, " D"], eps: float) -> Float[Array, "*rows D"]:
    """Returns the norm; see `rms_norm`."""
    wide = before_sum(x).astype(jnp.float32)
    variance = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(variance + eps) * (1.0 + scale)).astype(x.dtype)


def add_rms_norm_xla(
    x: Float[Array, "*rows D"], y: Float[Array, "*rows D"], scale: Float32[Array, " D"], eps: float
) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
    """Returns x + y and its norm."""
    return x + y, rms_norm_xla(x + y, scale, eps)
