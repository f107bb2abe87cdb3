"""RMSNorm in bfloat16, alone or of a sum."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float32

from .library import call


def takes(x: Array, *others: Array | float) -> bool:
    """Returns whether the norms support these activations: bfloat16, with a width that is a multiple of 16."""
    return x.dtype == jnp.bfloat16 and x.shape[-1] % 16 == 0


def rms_norm(x: BFloat16[Array, "*rows D"], scale: Float32[Array, " D"], eps: float) -> BFloat16[Array, "*rows D"]:
    """Computes x * rsqrt(mean(x²) + eps) * (1 + scale) in float32; D is a multiple of 16."""
    rows = x.reshape(-1, x.shape[-1])
    return call("roost_rms_norm", rows.shape, x.dtype, rows, scale, eps=np.float32(eps)).reshape(x.shape)


def add_rms_norm(
    x: BFloat16[Array, "*rows D"], y: BFloat16[Array, "*rows D"], scale: Float32[Array, " D"], eps: float
) -> tuple[BFloat16[Array, "*rows D"], BFloat16[Array, "*rows D"]]:
    """Returns x + y, rounded to bfloat16, and the `rms_norm` of that."""
    rows, others = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    run: Any = jax.ffi.ffi_call("roost_add_rms_norm", [jax.ShapeDtypeStruct(rows.shape, x.dtype)] * 2)
    total, normed = run(rows, others, scale, eps=np.float32(eps))
    return total.reshape(x.shape), normed.reshape(x.shape)
