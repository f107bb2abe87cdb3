"""Precision of matrix products."""

import jax
import jax.numpy as jnp


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Returns the precision of products with weights or keys of this dtype: no rounding of float32 on TPUs and GPUs."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
