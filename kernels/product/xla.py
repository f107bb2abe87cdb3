"""Products as XLA computes them, for every backend."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ..matrices import QuantizedMatrix
from ..precision import float_dot


def product_xla(
    x: Float[Array, "R I"],
    weight: Float[Array, "O I"] | QuantizedMatrix,
    bias: Float32[Array, " O"] | None,
    dtype: jnp.dtype,
) -> Float[Array, "R O"]:
    """Returns x · weightᵀ + bias; see `product`."""
    y = _sums(pad_rows(x, weight.dtype), weight)[: x.shape[0]]
    return (y if bias is None else y + bias).astype(dtype)


def _sums(x: Float[Array, "R I"], weight: Float[Array, "O I"] | QuantizedMatrix) -> Float32[Array, "R O"]:
    if not isinstance(weight, Array):
        return weight.dot(x)
    return float_dot(x, weight)


def pad_rows(rows: Float[Array, "R *shape"], dtype: jnp.dtype) -> Float[Array, "R2 *shape"]:
    """Repeats rows up to a minimum number: below it XLA for CPUs takes a slower path, with other bits."""
    least = 8 if dtype == jnp.float32 else 2
    return jnp.concatenate([rows] * -(-least // rows.shape[0]))
