"""RMSNorm, alone or of a sum."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from .arithmetic import before_sum
from .backend import Backend


def rms_norm(
    x: Float[Array, "*rows D"], scale: Float32[Array, " D"], eps: float, backend: Backend
) -> Float[Array, "*rows D"]:
    """Returns x * rsqrt(mean(x²) + eps) * (1 + scale), computed in float32, in the dtype of x."""
    return backend.dispatch("rms_norm", rms_norm_xla, x, scale, eps)


def add_rms_norm(
    x: Float[Array, "*rows D"], y: Float[Array, "*rows D"], scale: Float32[Array, " D"], eps: float, backend: Backend
) -> tuple[Float[Array, "*rows D"], Float[Array, "*rows D"]]:
    """Returns x + y and its `rms_norm`."""
    return backend.dispatch("add_rms_norm", add_rms_norm_xla, x, y, scale, eps)


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
