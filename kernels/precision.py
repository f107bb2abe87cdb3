"""How exactly products are computed."""

import jax
import jax.numpy as jnp


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Of products with weights or keys of this type: float32 factors stay so, where a TPU or GPU would round them."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
