"""Gated MLP as two products, for every backend."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ..backend import Backend
from ..gelu import gelu
from ..matrices import Matrix
from ..product import product


def gated_mlp_separate(
    x: Float[Array, "*rows D"],
    gate_up: Matrix,
    gate_up_bias: Float32[Array, " F2"],
    down: Matrix,
    down_bias: Float32[Array, " D"] | None,
    backend: Backend,
) -> Float[Array, "*rows D"]:
    """Returns down(gelu(gate(x)) * up(x)); see `gated_mlp`."""
    gate, up = jnp.split(product(x, gate_up, gate_up_bias, x.dtype, backend), 2, axis=-1)
    return product((gelu(gate) * up).astype(x.dtype), down, down_bias, x.dtype, backend)
