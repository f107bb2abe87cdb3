"""Matrices in int8, and their products with activations that are rounded to int8 on the way (W8A8).

A row and a scale for it stand for row * scale. Weights lie as [out, in], so each output channel has a scale of its own,
and so has each token of the activations. Sums of int8 products are exact in int32: not even their order matters, and
what a row of activations gives does not depend on the rows beside it. Weights in int8 with activations left in
bfloat16 would be more exact, but no faster than bfloat16 on a CPU, which would widen every weight in every step.
"""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8, Int32

from ...kernels.tree_reduce import max_last

_LARGEST: Final = 127.0
"""Of the values; -128 is not used, so that a number and its negative round alike."""

_STEP: Final = 1.0 / _LARGEST

_FLOOR: Final = 1e-30
"""Rows with nothing larger than this are taken for zeros, whose scale must not be 0."""

_LOWEST: Final = float(np.finfo(np.float32).min)

_PIECE: Final = 2**20
"""Numbers that are widened at a time where a matrix is quantised on the host."""


class QuantizedMatrix(NamedTuple):
    """Rows of int8 and what each is to be multiplied by; on the device, on the host, or as shapes."""

    values: Int8[Any, "O I"]
    scale: Float32[Any, " O"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        shape: tuple[int, ...] = self.values.shape
        return shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of the values."""
        kind: jnp.dtype = self.values.dtype
        return kind


def is_quantized(node: Any) -> bool:
    """Whether a node of a tree of parameters is a quantised matrix, one leaf rather than two."""
    return isinstance(node, QuantizedMatrix)


type Matrix = Float[Array, "O I"] | QuantizedMatrix


def zero_matrix(outputs: int, inputs: int, dtype: jnp.dtype) -> Matrix:
    """A matrix to be filled; int8 makes it a quantised one."""
    zeros = jnp.zeros((outputs, inputs), dtype)
    return QuantizedMatrix(zeros, jnp.zeros(outputs, jnp.float32)) if dtype == jnp.int8 else zeros


def gather_rows(matrix: Matrix, rows: Int32[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape I"]:
    """The rows named, in `dtype`."""
    if not isinstance(matrix, QuantizedMatrix):
        return matrix[rows].astype(dtype)
    wide: Array = matrix.values[rows].astype(jnp.float32) * matrix.scale[rows][..., None]
    return wide.astype(dtype)


def quantized_dot(x: Float[Array, "R I"], weight: QuantizedMatrix) -> Float32[Array, "R O"]:
    """x · weightᵀ, with the rows of x quantised."""
    rows = quantize_rows(x)
    sums = jax.lax.dot_general(rows.values, weight.values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    product = sums.astype(jnp.float32) * (rows.scale[:, None] * weight.scale)
    # Else this product and a sum behind it may become one instruction, which rounds once, in some shapes only.
    return jnp.maximum(product, _LOWEST)


def quantize_rows(x: Float[Array, "R I"]) -> QuantizedMatrix:
    """Scales each row so that its largest value becomes 127 or -127, and rounds, halves to even."""
    wide = x.astype(jnp.float32)
    largest = jnp.maximum(max_last(jnp.abs(wide))[:, 0], _FLOOR)
    values = jnp.round(wide * (_LARGEST / largest)[:, None]).astype(jnp.int8)
    return QuantizedMatrix(values, largest * _STEP)


def quantize_on_host(matrix: np.ndarray[Any, np.dtype[Any]]) -> QuantizedMatrix:
    """The same for a matrix in any type on the host, a piece at a time."""
    values, scale = np.empty(matrix.shape, np.int8), np.empty(len(matrix), np.float32)
    step = max(_PIECE // matrix.shape[1], 1)
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        piece = matrix[rows].astype(np.float32)
        largest = np.maximum(np.maximum(piece.max(axis=1), -piece.min(axis=1)), np.float32(_FLOOR))
        piece *= (np.float32(_LARGEST) / largest)[:, None]
        values[rows], scale[rows] = np.rint(piece, out=piece), largest * np.float32(_STEP)
    return QuantizedMatrix(values, scale)
