"""RMSNorm in bfloat16, alone or of a sum."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, BFloat16, Float32

from .library import call


def rms_norm(x: BFloat16[Array, "R D"], scale: Float32[Array, " D"], eps: float) -> BFloat16[Array, "R D"]:
    """Computes x * rsqrt(mean(x²) + eps) * (1 + scale) in float32; D is a multiple of 16."""
    return call("roost_rms_norm", x.shape, x.dtype, x, scale, eps=np.float32(eps))


def add_rms_norm(
    x: BFloat16[Array, "R D"], y: BFloat16[Array, "R D"], scale: Float32[Array, " D"], eps: float
) -> tuple[BFloat16[Array, "R D"], BFloat16[Array, "R D"]]:
    """Returns x + y, rounded to bfloat16, and the `rms_norm` of that."""
    run: Any = jax.ffi.ffi_call("roost_add_rms_norm", [jax.ShapeDtypeStruct(x.shape, x.dtype)] * 2)
    total, normed = run(x, y, scale, eps=np.float32(eps))
    return total, normed
