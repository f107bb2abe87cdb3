"""Checkpoint tensors in another precision: converted while they are read, and stored as compressed-tensors stores them.

In int8, a matrix is `weight` and `weight_scale`, with a scale for each row. In int4 it is `weight_packed`,
`weight_scale`, with a scale for each group of inputs, and `weight_shape`. The lowest bits of a packed word are the
first input's, and an offset makes the values unsigned, so the words have the bytes of an `Int4Matrix`. Its
embedding is packed in the same way in 8 bits with a scale for each row, or not quantised.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

from ...kernels.matrices import Int4Matrix, QuantizedMatrix
from ...kernels.matrices.int8 import quantize_on_host
from ..model.config import ModelConfig
from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from .format import BFLOAT16, ReadRows, StoredTensor, Tensors
from .layout import TensorSpec, tensor_specs

type Quantize = Callable[[StoredTensor], Int4Matrix]
"""Reads a whole matrix and quantises it to 4 bits."""

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


def converted(
    tensors: Tensors,
    config: ModelConfig,
    dtype: np.dtype[Any] | None,
    quantize: str | None = None,
    quantized: Quantize | None = None,
) -> Tensors:
    """Returns tensors that are converted when they are read.

    Args:
      tensors: Tensors of the checkpoint, by name. Matrices that are stored quantised stay as they are, except that the
        embedding of a checkpoint in int4 becomes 8 bits.
      config: The model's config.
      dtype: Dtype of tensors that are not quantised; None keeps each tensor's own.
      quantize: "int8" or "int4" for matrices that are not quantised yet, with further tensors for their scales; None
        quantises none.
      quantized: Quantises a matrix of a layer to int4; None searches scales without data.
    """
    found: dict[str, StoredTensor] = {}
    in_4_bits = lru_cache(1)(quantized or _searched)
    for spec in tensor_specs(config):
        if "int4" in (quantize, config.quantize) and spec.is_embedding and spec.name in tensors:
            new = _embedding_in_8_bits(tensors[spec.name], spec)
        elif quantize == "int8" and spec.is_matrix:
            tensor = tensors[spec.name]
            values = _changed(tensor, spec, "int8", lambda piece: quantize_on_host(piece).values)
            new = [values, _row_scale(tensor, spec)]
        elif quantize == "int4" and spec.is_matrix:
            new = _in_4_bits(tensors[spec.name], spec, in_4_bits, config)
        elif spec.is_matrix and config.quantize is not None:
            new = [tensors[stored.name] for stored, _ in stored_specs(spec, config, tensors)]
        else:
            new = [_in_dtype(tensors[spec.name], spec, dtype)]
        found |= {each.name: each for each in new}
    return found


def _searched(tensor: StoredTensor) -> Int4Matrix:
    parts = [Int4Matrix.quantize(piece) for _, piece in tensor.pieces()]
    return Int4Matrix(*map(np.concatenate, zip(*parts, strict=True)))


def _in_dtype(tensor: StoredTensor, spec: TensorSpec, dtype: np.dtype[Any] | None) -> StoredTensor:
    wanted = dtype or tensor.kept_dtype or tensor.dtype
    if wanted == tensor.dtype:
        return tensor
    return _changed(tensor, spec, wanted.name, lambda piece: piece.astype(wanted))


def _embedding_in_8_bits(tensor: StoredTensor, spec: TensorSpec) -> list[StoredTensor]:
    """Returns the tensors of the embedding in a checkpoint in int4."""
    words = _changed(tensor, spec.packed, "int32", lambda piece: words_of(quantize_on_host(piece).values))
    return [words, _row_scale(tensor, spec), _shape(tensor, spec)]


def _in_4_bits(tensor: StoredTensor, spec: TensorSpec, quantize: Quantize, config: ModelConfig) -> list[StoredTensor]:
    """Returns the tensors of a matrix in 4 bits. Its scales are read while the matrix is still known from its words."""
    scale = spec.group_scale(config.int4_group_size)
    return [
        _like(tensor, spec.packed, "int32", lambda: lambda rows: words_of(quantize(tensor).values[rows])),
        _like(tensor, scale, "float16", lambda: lambda rows: quantize(tensor).scale[rows]),
        _shape(tensor, spec),
    ]


def _row_scale(tensor: StoredTensor, spec: TensorSpec) -> StoredTensor:
    """Returns the row scales of a quantised matrix, which is read a second time for them."""

    def open_tensor() -> ReadRows:
        read = tensor.reader()

        def scale(rows: slice) -> HostArray:
            # The scales' pieces would span too many rows of the matrix, so the matrix is read in its pieces.
            parts = [
                quantize_on_host(read(slice(start, min(start + tensor.rows_per_piece, rows.stop)))).scale
                for start in range(rows.start, rows.stop, tensor.rows_per_piece)
            ]
            return np.concatenate(parts)[:, None]

        return scale

    return _like(tensor, spec.scale, "float32", open_tensor)


def _shape(tensor: StoredTensor, spec: TensorSpec) -> StoredTensor:
    return _like(tensor, spec.packed_shape, "int64", lambda: np.array(spec.shape, np.int64).__getitem__)


def _changed(
    tensor: StoredTensor, spec: TensorSpec, dtype: str, change: Callable[[HostArray], HostArray]
) -> StoredTensor:
    """Returns a tensor whose rows are made of the same rows of another."""

    def open_tensor() -> ReadRows:
        read = tensor.reader()
        return lambda rows: change(read(rows))

    return _like(tensor, spec, dtype, open_tensor)


def _like(tensor: StoredTensor, spec: TensorSpec, dtype: str, open_tensor: Callable[[], ReadRows]) -> StoredTensor:
    """Returns a tensor of the file of another."""
    return replace(tensor, name=spec.name, shape=spec.shape, dtype=np.dtype(dtype), open=open_tensor, kept_dtype=None)


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
