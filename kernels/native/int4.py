"""Products of activations with packed matrices in 4 bits."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ..matrices import Matrix, PackedInt4Matrix
from ..matrices.packed import STRIP_OUTPUTS
from .library import call


def takes(x: Array, weight: Matrix, *others: Array | jnp.dtype | None) -> bool:
    """Returns whether `int4_product` supports the matrix: a packed one in 4 bits."""
    return isinstance(weight, PackedInt4Matrix)


def int4_product(
    x: Float[Array, "R I"], weight: PackedInt4Matrix, bias: Float32[Array, " O"] | None, dtype: jnp.dtype
) -> Float[Array, "R O"]:
    """Computes x · weightᵀ + bias with the bits of `Int4Matrix.dot`; see `roost.kernels.product`."""
    shape = (x.shape[0], weight.values.shape[0] * STRIP_OUTPUTS)
    added = jnp.zeros(0, jnp.float32) if bias is None else bias
    return call("roost_int4_product", shape, dtype, x, weight.values, weight.scale, added)
