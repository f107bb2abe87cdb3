"""Tensors of a checkpoint on disk, with Hugging Face's names and shapes in any format."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from ..types.arrays import HostArray
from ..types.errors import CheckpointError

type ReadRows = Callable[[slice], HostArray]
"""Function that reads a slice of a tensor's rows, along its first axis. It may have a cache."""

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)

_PIECE: Final = 2**22
"""Elements that are read at a time."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Tensor on disk that is read on demand, several rows at a time.

    Attributes:
      name: Hugging Face's name of the tensor.
      file: File or folder of the tensor, for messages.
      shape: Shape in Hugging Face's layout.
      dtype: Dtype of the values that are read.
      open: Returns a reader that does not check values.
      kept_dtype: Dtype in which the tensor is stored again, if `dtype` is a wider one that it was computed in.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], ReadRows]
    kept_dtype: np.dtype[Any] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows_per_piece(self) -> int:
        """Number of rows that are read at a time."""
        return max(_PIECE // math.prod(self.shape[1:]), 1)

    def reader(self) -> ReadRows:
        """Returns a reader that rejects non-finite values.

        Raises:
          CheckpointError: Now or when rows are read, if they cannot be read, or hold NaN or an infinite number.
        """
        read = self.open()

        def read_finite(rows: slice) -> HostArray:
            piece = read(rows)
            if _is_finite(piece):
                return piece
            raise CheckpointError(
                f"{self.file}: tensor {self.name} holds NaN or an infinite number, so every output would be noise; "
                "download the file again, or use another checkpoint"
            )

        return read_finite

    def pieces(self) -> Iterator[tuple[slice, HostArray]]:
        """Yields slices of rows and their values in the stored dtype, until the end of the tensor.

        Raises:
          CheckpointError: See `reader`.
        """
        read = self.reader()
        for start in range(0, self.shape[0], self.rows_per_piece):
            rows = slice(start, min(start + self.rows_per_piece, self.shape[0]))
            yield rows, read(rows)

    def whole(self) -> HostArray:
        """Returns the whole tensor."""
        out = np.empty(self.shape, self.dtype)
        for rows, piece in self.pieces():
            out[rows] = piece
        return out


type Tensors = Mapping[str, StoredTensor]
"""Tensors of a checkpoint by name."""


def bytes_of(array: HostArray) -> memoryview:
    """Returns the bytes of an array in row-major order."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _is_finite(array: HostArray) -> bool:
    if array.dtype == BFLOAT16:  # by the exponent's bits, because NumPy widens bfloat16 one element at a time
        return bool(((array.view(np.uint16) & 0x7F80) != 0x7F80).all())
    return array.dtype.kind in "iu" or bool(np.isfinite(array).all())
