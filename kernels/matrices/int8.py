"""Matrices in int8, and their products with activations that are quantised to int8 (W8A8).

A quantised matrix is int8 rows and a scale for each: row * scale. Weights are stored as [out, in], so each output
channel has its own scale, and so has each token of the activations. Sums of int8 products are exact in int32, in any
order, so a row's result does not depend on the other rows. Int8 weights with bfloat16 activations would be more exact,
but on a CPU no faster than bfloat16, because every step would widen every weight.
"""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8, Int32

from ..arithmetic import INT8_FLOOR, INT8_LARGEST, INT8_STEP, round_to_int8, rounded

_PIECE: Final = 2**20
"""Elements widened at a time when a matrix is quantised on the host."""


class Int8Matrix(NamedTuple):
    """Matrix of int8 rows, each with a scale; arrays on the device or host, or shapes.

    Attributes:
      values: The rows.
      scale: Factor of each row.
    """

    values: Int8[Any, "O I"]
    scale: Float32[Any, " O"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix."""
        return self.values.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the values."""
        return self.values.dtype

    @classmethod
    def zeros(cls, outputs: int, inputs: int) -> "Int8Matrix":
        """Returns a matrix of zeros."""
        return cls(jnp.zeros((outputs, inputs), jnp.int8), jnp.zeros(outputs, jnp.float32))

    @classmethod
    def quantize(cls, matrix: np.ndarray[Any, np.dtype[Any]]) -> "Int8Matrix":
        """Quantises a matrix of any floating-point dtype on the host; see `quantize_on_host`."""
        return quantize_on_host(matrix)

    def dot(self, x: Float[Array, "R I"]) -> Float32[Array, "R O"]:
        """Returns x · weightᵀ by XLA; see `quantized_dot`."""
        return quantized_dot(x, self)

    def rows(self, rows: Int32[Array, "*shape"]) -> Float32[Array, "*shape I"]:
        """Returns some rows in float32."""
        return self.values[rows].astype(jnp.float32) * self.scale[rows][..., None]


def quantized_dot(x: Float[Array, "R I"], weight: Int8Matrix) -> Float32[Array, "R O"]:
    """Returns x · weightᵀ, with the rows of x quantised."""
    rows = quantize_rows(x)
    sums = jax.lax.dot_general(rows.values, weight.values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    return rounded(sums.astype(jnp.float32) * (rows.scale[:, None] * weight.scale))


def quantize_rows(x: Float[Array, "R I"]) -> Int8Matrix:
    """Quantises each row; see `round_to_int8`."""
    values, scale = round_to_int8(x)
    return Int8Matrix(values, scale[:, 0])


def quantize_on_host(matrix: np.ndarray[Any, np.dtype[Any]]) -> Int8Matrix:
    """Quantises a matrix of any floating-point dtype on the host, some rows at a time; see `quantize_rows`."""
    values, scale = np.empty(matrix.shape, np.int8), np.empty(len(matrix), np.float32)
    step = max(_PIECE // matrix.shape[1], 1)
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        piece = matrix[rows].astype(np.float32)
        largest = np.maximum(np.maximum(piece.max(axis=1), -piece.min(axis=1)), np.float32(INT8_FLOOR))
        piece *= (np.float32(INT8_LARGEST) / largest)[:, None]
        values[rows], scale[rows] = np.rint(piece, out=piece), largest * np.float32(INT8_STEP)
    return Int8Matrix(values, scale)
