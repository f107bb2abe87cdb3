"""RMSNorm, alone or of a sum."""

from jaxtyping import Array, Float, Float32

from ..backend import Backend
from .xla import add_rms_norm_xla, rms_norm_xla

__all__ = ["add_rms_norm", "rms_norm"]


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
