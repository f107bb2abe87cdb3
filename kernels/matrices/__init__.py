"""Matrices of weights, `[out, in]`: in a floating-point dtype, quantised, or packed for native kernels.

A quantised matrix is a named tuple of arrays that have a row for each output. Its class, one of `FORMATS`, has the
product with activations, the rows in float32, and the quantisation on the host.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from .int4 import Int4Matrix, takes_inputs
from .int8 import Int8Matrix
from .packed import PackedGates, PackedInt4Matrix, PackedMatrix, pack_param, pack_shapes

type QuantizedMatrix = Int8Matrix | Int4Matrix
"""A quantised matrix; arrays on the device or host, or shapes."""

FORMATS: Final[Mapping[str, type[Int8Matrix] | type[Int4Matrix]]] = {"int8": Int8Matrix, "int4": Int4Matrix}
"""Classes of quantised matrices by the name of their dtype."""

type Matrix = Float[Array, "_ _"] | QuantizedMatrix | PackedMatrix | PackedInt4Matrix
"""A weight of shape [out, in]."""


def is_quantized(node: Any) -> TypeGuard[QuantizedMatrix]:
    """Returns whether a node of a parameter tree is a quantised matrix; `is_leaf` for `jax.tree` functions."""
    return isinstance(node, tuple(FORMATS.values()))


def zero_matrix(outputs: int, inputs: int, dtype: jnp.dtype) -> Matrix:
    """Returns a matrix of zeros, quantised if `dtype` is that of a format."""
    if dtype.name in FORMATS:
        return FORMATS[dtype.name].zeros(outputs, inputs)
    return jnp.zeros((outputs, inputs), dtype)


def table_dtype(matrices: jnp.dtype) -> jnp.dtype:
    """Returns the dtype of the embedding, which is the output layer too, in a model whose matrices have this dtype.

    It is int8 if the matrices have 4 bits, because errors of logits cost most.
    """
    return jnp.dtype("int8") if matrices.name == "int4" else matrices


def gather_rows(
    matrix: Float[Array, "_ _"] | QuantizedMatrix | PackedMatrix, rows: Int32[Array, "*shape"], dtype: jnp.dtype
) -> Float[Array, "*shape I"]:
    """Returns the given rows, dequantised if necessary, in `dtype`."""
    found = matrix[rows] if isinstance(matrix, Array) else matrix.rows(rows)
    return found.astype(dtype)
