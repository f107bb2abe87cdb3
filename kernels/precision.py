"""Precision of products and sums, and where products are rounded."""

from typing import Final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

_LOWEST: Final = {"float32": -(2.0 - 2.0**-23) * 2.0**127, "bfloat16": -(2.0 - 2.0**-7) * 2.0**127}
"""Lowest finite number of each dtype."""


def rounded(product: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns finite products of elements, rounded before anything is added to them.

    XLA for CPUs otherwise fuses a product with a sum, which rounds once: whether it does, and which of two products
    it takes, depends on the number of rows and on the processor. The maximum has no effect but to stand between them.
    """
    return jnp.maximum(product, _LOWEST[product.dtype.name])


def before_sum(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns numbers whose products are to be summed, computed before the sum begins.

    XLA for CPUs adds in an order that depends on what it fuses into a sum, and that depends on the number of rows.
    """
    computed: Array = jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
    return computed


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
