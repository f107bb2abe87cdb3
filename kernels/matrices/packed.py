"""Layouts of matrices and gates that native kernels read.

The C++ side of the layouts is in csrc/packed_matrix.h and csrc/recurrent_block.h of `roost.kernels.native`.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, Int32, UInt8

from .int4 import Int4Matrix
from .int8 import Int8Matrix

STRIP_OUTPUTS: Final = 16
"""Number of outputs in a strip of a packed matrix."""

_GROUP_BYTES: Final = 4
"""Bytes of each output in a group of inputs."""

_PIECE_WORDS: Final = 2**18
"""Words that are packed at a time, which bounds the temporary memory."""


class PackedMatrix(NamedTuple):
    """Matrix in the layout of the native kernels for CPUs; arrays, or shapes.

    Attributes:
      values: Packed values; see `pack`.
      scale: Factor of each row of the matrix; None if it is not quantised.
    """

    values: Any
    scale: Float32[Any, " O"] | None

    def rows(self, rows: Int32[Array, "*shape"]) -> Float[Array, "*shape I"]:
        """Returns some rows, in float32 if the matrix is quantised."""
        strips, places = rows // STRIP_OUTPUTS, rows % STRIP_OUTPUTS
        values: Array = self.values[strips, :, places].reshape(*rows.shape, -1)
        if self.scale is None:
            return values
        return (values.astype(jnp.float32) - 128.0) * self.scale[rows][..., None]


class PackedInt4Matrix(NamedTuple):
    """Matrix in 4 bits in the layout of the native kernels for CPUs; arrays, or shapes.

    Attributes:
      values: Packed values; see `pack_int4`.
      scale: Factor of each group of inputs, by strip of outputs.
    """

    values: UInt8[Any, "S I8 16 4"]
    scale: Float16[Any, "S G 16"]


class PackedGates(NamedTuple):
    """Weights of the RG-LRU's gates in the layout of the native kernels for CPUs; an array, or a shape.

    Attributes:
      values: Packed weights; see `pack_gates`.
    """

    values: Float32[Any, "N S e 32"]


def pack_param(param: Any) -> Any:
    """Packs a parameter of host memory in place, if it is a matrix or gates of a shape and dtype that kernels take.

    Returns:
      `PackedMatrix`, `PackedInt4Matrix`, `PackedGates`, or the parameter itself.
    """
    return _packed(param, pack, pack_int4, pack_gates)


def pack_shapes(params: Any) -> Any:
    """Returns the shapes of parameters after `pack_param`."""

    def matrix(values: Any) -> jax.ShapeDtypeStruct:
        return packed_shape(values.shape, values.dtype)

    def gates(values: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(packed_gates_shape(values.shape), values.dtype)

    def is_matrix(node: Any) -> bool:
        return isinstance(node, Int8Matrix | Int4Matrix)

    return jax.tree.map(lambda param: _packed(param, matrix, packed_int4_shapes, gates), params, is_leaf=is_matrix)


def _packed(
    param: Any,
    pack_matrix: Callable[[Any], Any],
    pack_int4: Callable[[Int4Matrix], PackedInt4Matrix],
    pack_gates: Callable[[Any], Any],
) -> Any:
    if isinstance(param, Int4Matrix):
        return param if param.shape[0] % STRIP_OUTPUTS else pack_int4(param)
    values, scale = param if isinstance(param, Int8Matrix) else (param, None)
    if len(values.shape) == 2 and can_pack(values.shape, values.dtype):
        return PackedMatrix(pack_matrix(values), scale)
    if len(values.shape) == 3 and can_pack_gates(values.shape, values.dtype):
        return PackedGates(pack_gates(values))
    return param


def can_pack(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Returns whether a matrix of this shape and dtype can be packed: int8 and bfloat16 of whole strips and groups."""
    outputs, inputs = shape
    group = _GROUP_BYTES // dtype.itemsize
    return dtype in (jnp.int8, jnp.bfloat16) and outputs % STRIP_OUTPUTS == 0 and inputs % group == 0


def pack(matrix: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Packs a contiguous matrix in place, in the layout that products read.

    A strip of 16 outputs has, for each group of 4 bytes of inputs, that group of every output, so that a register of
    the processor holds a group and its lanes are outputs. Int8 values have 128 added.

    Args:
      matrix: Matrix `[O, I]` in int8 or bfloat16; see `can_pack`.

    Returns:
      The same memory as `[O / 16, I / group, 16, group]`, in uint8 for int8.
    """
    outputs, inputs = matrix.shape
    group = _GROUP_BYTES // matrix.itemsize
    words = matrix.view(np.uint32).reshape(outputs // STRIP_OUTPUTS, STRIP_OUTPUTS, inputs // group)
    packed = words.reshape(len(words), inputs // group, STRIP_OUTPUTS)
    flipped = np.uint32(0x80808080 if matrix.dtype == np.int8 else 0)
    step = max(1, _PIECE_WORDS // (STRIP_OUTPUTS * words.shape[2]))
    for start in range(0, len(words), step):
        some = slice(start, start + step)
        packed[some] = words[some].transpose(0, 2, 1) ^ flipped
    dtype = np.dtype("uint8") if matrix.dtype == np.int8 else matrix.dtype
    return packed.view(dtype).reshape(*packed.shape, group)


def packed_shape(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of a packed matrix; see `pack`."""
    outputs, inputs = shape
    group = _GROUP_BYTES // dtype.itemsize
    packed = (outputs // STRIP_OUTPUTS, inputs // group, STRIP_OUTPUTS, group)
    return jax.ShapeDtypeStruct(packed, jnp.dtype("uint8") if dtype == jnp.int8 else dtype)


def pack_int4(matrix: Int4Matrix) -> PackedInt4Matrix:
    """Packs a contiguous matrix of whole strips in place; its scales become a new array.

    A strip of 16 outputs has, for each 8 inputs, 4 bytes of every output: the first 4 inputs in the lower halves of the
    bytes, the others in the upper ones.
    """
    strips, inputs = matrix.shape[0] // STRIP_OUTPUTS, matrix.shape[1]
    words = matrix.values.view(np.uint32).reshape(strips, STRIP_OUTPUTS, inputs // 8)
    packed = words.reshape(strips, inputs // 8, STRIP_OUTPUTS)
    for strip in range(strips):
        packed[strip] = _halves_apart(words[strip].T)
    scale = matrix.scale.reshape(strips, STRIP_OUTPUTS, -1).transpose(0, 2, 1)
    return PackedInt4Matrix(packed.view(np.uint8).reshape(*packed.shape, 4), np.ascontiguousarray(scale))


def _halves_apart(words: np.ndarray[Any, np.dtype[np.uint32]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Returns words with their lower four of eight values in the lower halves of their bytes, in a new array."""
    # The values of each pair are in a byte: 01 23 45 67 becomes 01 45 23 67, and 01 45 becomes 04 15.
    swapped = (words ^ words >> np.uint32(8)) & np.uint32(0x0000FF00)
    words = words ^ swapped ^ swapped << np.uint32(8)
    swapped = (words ^ words >> np.uint32(4)) & np.uint32(0x00F000F0)
    return words ^ swapped ^ swapped << np.uint32(4)


def packed_int4_shapes(matrix: Int4Matrix) -> PackedInt4Matrix:
    """Returns shapes and dtypes of a packed matrix in 4 bits; see `pack_int4`."""
    (outputs, inputs), groups = matrix.shape, matrix.scale.shape[1]
    strips = outputs // STRIP_OUTPUTS
    return PackedInt4Matrix(
        jax.ShapeDtypeStruct((strips, inputs // 8, STRIP_OUTPUTS, 4), np.uint8),
        jax.ShapeDtypeStruct((strips, groups, STRIP_OUTPUTS), np.float16),
    )


def can_pack_gates(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Returns whether weights of gates can be packed: float32, with blocks of whole strips."""
    _, inputs, outputs = shape
    return dtype == jnp.float32 and outputs == 2 * inputs and inputs % STRIP_OUTPUTS == 0


def pack_gates(weight: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Packs block-diagonal weights of two gates in place, in the layout that `recurrent_step` reads.

    Args:
      weight: Weights `[N, e, 2 e]`, the input gate's columns first; see `can_pack_gates`.

    Returns:
      The same memory as `[N, e / 16, e, 32]`: strips with 16 columns of each gate.
    """
    packed = weight.reshape(packed_gates_shape(weight.shape))
    for block, strips in zip(weight, packed, strict=True):
        columns = block.reshape(len(block), 2, len(strips), STRIP_OUTPUTS).transpose(2, 0, 1, 3)
        strips[:] = columns.reshape(strips.shape)  # a copy
    return packed


def packed_gates_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of packed gates; see `pack_gates`."""
    blocks, inputs, _ = shape
    return blocks, inputs // STRIP_OUTPUTS, inputs, 2 * STRIP_OUTPUTS
