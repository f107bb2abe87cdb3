"""Quantised matrices of checkpoints, as compressed-tensors stores them: their tensors, and the bytes of these.

In int8, a matrix is `weight` and `weight_scale`, with a scale for each row. In int4 it is `weight_packed`,
`weight_scale`, with a scale for each group of inputs, and `weight_shape`. The lowest bits of a packed word are the
first input's, and an offset makes the values unsigned, so the bytes of the words are those of an `Int4Matrix`. Its
embedding is packed in the same way in 8 bits with a scale for each row, or not quantised.
"""

from typing import Any, Final, NamedTuple

import numpy as np

from ...kernels.matrices import Int4Matrix, QuantizedMatrix
from ..model.config import ModelConfig
from ..types.arrays import HostArray
from ..types.errors import CheckpointError
from .layout import TensorSpec
from .tensors import BFLOAT16, StoredTensor, Tensors

_INT8: Final = np.dtype("int8")

_MAX_SCALE: Final = float(np.finfo(np.float16).max)

_SIGN: Final = np.uint8(0x80)
"""Adds 128 to a byte in two's complement, as packing in 8 bits does."""


class Numbers(NamedTuple):
    """Dtypes that a tensor may have.

    Attributes:
      title: Name for messages.
      dtypes: The dtypes.
    """

    title: str
    dtypes: tuple[np.dtype[Any], ...]


_FLOATS: Final = Numbers("a floating-point type", (np.dtype("float32"), BFLOAT16, np.dtype("float16")))
_BYTES: Final = Numbers("int8", (_INT8,))
_WORDS: Final = Numbers("int32", (np.dtype("int32"),))
_SIZES: Final = Numbers("int64", (np.dtype("int64"), np.dtype("int32")))


def stored_specs(spec: TensorSpec, config: ModelConfig, tensors: Tensors) -> list[tuple[TensorSpec, Numbers]]:
    """Returns the tensors, and their dtypes, that stand for a tensor in a checkpoint with this config."""
    if config.quantize is None or not spec.is_matrix:
        return [(spec, _FLOATS)]
    if config.quantize == "int8":
        return [(spec, _BYTES), (spec.scale, _FLOATS)]
    if spec.is_embedding and spec.packed.name not in tensors:
        return [(spec, _FLOATS)]
    return [(spec.packed, _WORDS), (spec.group_scale(config.int4_group_size), _FLOATS), (spec.packed_shape, _SIZES)]


def words_of(values: HostArray) -> HostArray:
    """Returns the packed words of rows of an `Int8Matrix` or `Int4Matrix`, given its values."""
    unsigned = values if values.dtype == np.uint8 else values.view(np.uint8) ^ _SIGN
    words: HostArray = np.ascontiguousarray(unsigned).view("<i4")
    return words


def read_matrix(spec: TensorSpec, tensors: Tensors, into: QuantizedMatrix) -> None:
    """Reads a matrix, several rows at a time, and quantises it if it is not stored so.

    Args:
      spec: The matrix.
      tensors: Tensors of the checkpoint, in the form of `into` or not quantised.
      into: Matrix to fill.

    Raises:
      CheckpointError: A tensor cannot be read, or holds NaN, an infinite number or too large a scale.
    """
    is_packed = spec.packed.name in tensors
    stored = tensors[spec.packed.name if is_packed else spec.name]
    if stored.dtype.kind != "i":
        for rows, piece in stored.pieces():
            for part, quantized in zip(into, into.quantize(piece), strict=True):
                part[rows] = quantized
        return
    for rows, piece in stored.pieces():
        into.values[rows] = _values_of(piece, into) if is_packed else piece
    if isinstance(into, Int4Matrix):
        into.scale[:] = _half_scale(tensors[spec.scale.name])
    else:
        into.scale[:] = tensors[spec.scale.name].whole()[:, 0]


def _half_scale(stored: StoredTensor) -> HostArray:
    """Returns a scale in float16.

    Raises:
      CheckpointError: A value is too large for float16.
    """
    scale = stored.whole()
    if scale.size and np.abs(scale).max() > _MAX_SCALE:
        raise CheckpointError(
            f"{stored.file}: tensor {stored.name} holds {np.abs(scale).max():g}, but scales in int4 must be at most "
            f"{_MAX_SCALE:g}; is the file broken?"
        )
    return scale


def _values_of(words: HostArray, like: QuantizedMatrix) -> HostArray:
    """Returns the values of packed words, as a matrix of the class of `like` has them."""
    unsigned = np.ascontiguousarray(words).view(np.uint8)
    return unsigned if isinstance(like, Int4Matrix) else (unsigned ^ _SIGN).view(np.int8)
