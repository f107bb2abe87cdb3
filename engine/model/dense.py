"""Linear layers, whose matrices may be quantised, and sharded over a mesh."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from ...kernels import Backend
from ...kernels.matrices import zero_matrix
from ...kernels.products import product
from .collectives import Collectives


def matrix(outputs: int, inputs: int, dtype: jnp.dtype) -> nnx.Param[Any]:
    """Returns a parameter for `product`, whose `get_value` is a `Matrix`."""
    return nnx.Param(zero_matrix(outputs, inputs, dtype))


def vector(*shape: int) -> nnx.Param[Any]:
    """Returns a parameter of zeros in float32."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


class Dense(nnx.Module):
    """Linear layer y = x · Kᵀ + b, summed in float32 and rounded to the dtype of x.

    Args:
      inputs: Input width of the unsharded matrix.
      outputs: Output width of the unsharded matrix.
      dtype: Dtype of the matrix.
      backend: Backend of the product.
      psum_over: Mesh over which inputs are sharded and partial products are summed; None for whole inputs.
    """

    def __init__(
        self, inputs: int, outputs: int, dtype: jnp.dtype, backend: Backend, psum_over: Collectives | None = None
    ) -> None:
        self.backend = backend
        self.psum_over = psum_over or Collectives()
        self.weight = matrix(outputs, inputs, dtype)
        self.bias = vector(outputs)

    def __call__(self, x: Float[Array, "*rows I"], dtype: jnp.dtype | None = None) -> Float[Array, "*rows O"]:
        """Returns y in `dtype`; None for that of x."""
        return self.psum_parts(product(x, self.weight.get_value(), self.own_bias, dtype or x.dtype, self.backend))

    @property
    def own_bias(self) -> Float32[Array, " O"] | None:
        """Bias that each shard adds to its product; None if `psum_parts` adds it to the sum."""
        return self.bias[...] if self.psum_over.model == 1 else None

    def psum_parts(self, parts: Float[Array, "*rows O"]) -> Float[Array, "*rows O"]:
        """Returns the sum of the shards' products with `own_bias`, plus the bias if that left it out."""
        if self.psum_over.model == 1:
            return parts
        return (self.psum_over.psum(parts) + self.bias[...]).astype(parts.dtype)
