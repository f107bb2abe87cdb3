"""Matrices in int8, and their products with activations that are quantised to int8 (W8A8).

A quantised matrix is int8 rows and a scale for each: row * scale. Weights are stored as [out, in], so each output
channel has its own scale, and so has each token of the activations. Sums of int8 products are exact in int32, in any
order, so a row's result does not depend on the other rows. Int8 weights with bfloat16 activations would be more exact,
but on a CPU no faster than bfloat16, because every step would widen every weight.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int8, Int32

from ...kernels import native
from ...kernels.int8_rounding import FLOOR, LARGEST, STEP, round_to_int8

_LOWEST: Final = float(np.finfo(np.float32).min)

_PIECE: Final = 2**20
"""Elements widened at a time when a matrix is quantised on the host."""


class QuantizedMatrix(NamedTuple):
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
        shape: tuple[int, ...] = self.values.shape
        return shape

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the values."""
        kind: jnp.dtype = self.values.dtype
        return kind


def is_quantized(node: Any) -> bool:
    """Returns whether a node of a parameter tree is a quantised matrix; `is_leaf` for `jax.tree` functions."""
    return isinstance(node, QuantizedMatrix)


class PackedMatrix(NamedTuple):
    """Matrix in the layout of the native kernels for CPUs; arrays, or shapes.

    Attributes:
      values: Packed values; see `roost.kernels.native.pack`.
      scale: Factor of each of the matrix's rows; None if it is not quantised.
    """

    values: Any
    scale: Float32[Any, " O"] | None

    @property
    def num_strips(self) -> int:
        """Number of strips of 16 rows."""
        count: int = self.values.shape[0]
        return count

    @property
    def dtype(self) -> jnp.dtype:
        """Dtype of the packed values."""
        kind: jnp.dtype = self.values.dtype
        return kind


type Matrix = Float[Array, "O I"] | QuantizedMatrix | PackedMatrix
"""A weight of shape [out, in]."""


def zero_matrix(outputs: int, inputs: int, dtype: jnp.dtype) -> Matrix:
    """Returns a matrix of zeros, quantised if `dtype` is int8."""
    zeros = jnp.zeros((outputs, inputs), dtype)
    return QuantizedMatrix(zeros, jnp.zeros(outputs, jnp.float32)) if dtype == jnp.int8 else zeros


def gather_rows(matrix: Matrix, rows: Int32[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape I"]:
    """Returns the given rows, dequantised if necessary, in `dtype`."""
    if isinstance(matrix, PackedMatrix):
        return _gather_packed(matrix, rows, dtype)
    if not isinstance(matrix, QuantizedMatrix):
        return matrix[rows].astype(dtype)
    wide: Array = matrix.values[rows].astype(jnp.float32) * matrix.scale[rows][..., None]
    return wide.astype(dtype)


def _gather_packed(matrix: PackedMatrix, rows: Int32[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape I"]:
    strips, places = rows // native.STRIP_OUTPUTS, rows % native.STRIP_OUTPUTS
    values: Array = matrix.values[strips, :, places].reshape(*rows.shape, -1)
    if matrix.scale is None:
        return values.astype(dtype)
    wide: Array = (values.astype(jnp.float32) - 128.0) * matrix.scale[rows][..., None]
    return wide.astype(dtype)


class PackedGates(NamedTuple):
    """Weights of the RG-LRU's gates in the layout of the native kernels for CPUs; an array, or a shape.

    Attributes:
      values: Packed weights; see `roost.kernels.native.pack_gates`.
    """

    values: Float32[Any, "N S e 32"]


def pack_param(param: Any) -> Any:
    """Packs a parameter of host memory in place, if it is a matrix or gates of a shape and dtype that kernels take.

    Returns:
      `PackedMatrix`, `PackedGates`, or the parameter itself.
    """
    return _packed(param, native.pack, native.pack_gates)


def pack_shapes(params: Any) -> Any:
    """Returns the shapes of parameters after `pack_param`."""

    def matrix(values: Any) -> jax.ShapeDtypeStruct:
        return native.packed_shape(values.shape, values.dtype)

    def gates(values: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(native.packed_gates_shape(values.shape), values.dtype)

    return jax.tree.map(lambda param: _packed(param, matrix, gates), params, is_leaf=is_quantized)


def _packed(param: Any, pack_matrix: Callable[[Any], Any], pack_gates: Callable[[Any], Any]) -> Any:
    values, scale = param if is_quantized(param) else (param, None)
    if len(values.shape) == 2 and native.can_pack(values.shape, values.dtype):
        return PackedMatrix(pack_matrix(values), scale)
    if len(values.shape) == 3 and native.can_pack_gates(values.shape, values.dtype):
        return PackedGates(pack_gates(values))
    return param


def quantized_dot(x: Float[Array, "R I"], weight: QuantizedMatrix) -> Float32[Array, "R O"]:
    """Returns x · weightᵀ, with the rows of x quantised."""
    rows = quantize_rows(x)
    sums = jax.lax.dot_general(rows.values, weight.values, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    product = sums.astype(jnp.float32) * (rows.scale[:, None] * weight.scale)
    # Without the maximum, XLA fuses this product with a following sum in some shapes only, which rounds once.
    return jnp.maximum(product, _LOWEST)


def quantize_rows(x: Float[Array, "R I"]) -> QuantizedMatrix:
    """Quantises each row; see `round_to_int8`."""
    values, scale = round_to_int8(x)
    return QuantizedMatrix(values, scale[:, 0])


def quantize_on_host(matrix: np.ndarray[Any, np.dtype[Any]]) -> QuantizedMatrix:
    """Quantises a matrix of any floating-point dtype on the host, some rows at a time; see `quantize_rows`."""
    values, scale = np.empty(matrix.shape, np.int8), np.empty(len(matrix), np.float32)
    step = max(_PIECE // matrix.shape[1], 1)
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        piece = matrix[rows].astype(np.float32)
        largest = np.maximum(np.maximum(piece.max(axis=1), -piece.min(axis=1)), np.float32(FLOOR))
        piece *= (np.float32(LARGEST) / largest)[:, None]
        values[rows], scale[rows] = np.rint(piece, out=piece), largest * np.float32(STEP)
    return QuantizedMatrix(values, scale)
