"""Products of matrices in floats, and their precision."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def product_precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Returns the precision of products with weights or keys of this dtype: no rounding of float32 on TPUs and GPUs."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def float_dot(x: Float[Array, "R I"], weight: Float[Array, "O I"]) -> Float32[Array, "R O"]:
    """Returns x · weightᵀ, summed in float32."""
    return jax.lax.dot_general(
        x,
        weight,
        (((1,), (1,)), ((), ())),
        precision=product_precision(weight.dtype),
        preferred_element_type=jnp.float32,
    )
