"""Products of activations with a matrix of weights.

Activations are quantised to int8 row by row if the matrix is in int8 (W8A8). On a TPU one kernel does so on the chip,
where the activations stay while the matrix streams past them. Separate operations would move the activations between
quantising, multiplying and scaling. CPUs have native kernels for packed matrices.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ..backend import XLA, Backend
from ..matrices import Int8Matrix, Matrix
from .xla import product_xla

__all__ = ["fills_registers", "int8_shape_is_left_to_xla", "product", "takes_int8"]


def product(
    x: Float[Array, "*rows I"],
    weight: Matrix,
    bias: Float32[Array, " O"] | None = None,
    dtype: jnp.dtype | None = None,
    backend: Backend = XLA,
) -> Float[Array, "*rows O"]:
    """Returns x · weightᵀ + bias, summed in float32, or in int32 if the weight is in int8.

    Args:
      x: Activations.
      weight: Matrix.
      bias: Bias of each output, or None.
      dtype: Dtype of the result; None for float32.
      backend: Backend of the kernels.
    """
    rows = x.reshape(-1, x.shape[-1])
    y = backend.dispatch("product", product_xla, rows, weight, bias, dtype or jnp.dtype("float32"))
    return y.reshape(*x.shape[:-1], y.shape[1])


def takes_int8(x: Array, weight: Matrix, *others: Array | jnp.dtype | None) -> bool:
    """Returns whether kernels that fill vector registers take the matrix: in int8, with sides of whole registers."""
    return isinstance(weight, Int8Matrix) and fills_registers(weight.shape)


def fills_registers(*shapes: tuple[int, ...]) -> bool:
    """Returns whether matrices of these shapes consist of whole vector registers."""
    return all(size % 128 == 0 for shape in shapes for size in shape)


def int8_shape_is_left_to_xla(backend: Backend, shape: tuple[int, ...]) -> bool:
    """Returns whether XLA multiplies int8 matrices of this shape although the backend has a kernel for others."""
    return "int8_product" in backend.names and not fills_registers(shape)
