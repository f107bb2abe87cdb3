"""GELU, in the approximation by tanh that Griffin's weights were trained with."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def gelu(x: Float[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """Returns the approximate GELU in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True)
