"""Tensors of a checkpoint as they lie on disk. Whatever the format, names and shapes are Hugging Face's (spec 4.3)."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from ..core.arrays import HostArray
from ..core.errors import CheckpointError

type ReadRows = Callable[[slice], HostArray]
"""Reads some of a tensor's rows, counted along its first axis. Whatever it caches goes with it."""

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)

_PIECE: Final = 2**22
"""Numbers that are read at a time."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that is read when it is asked for, and a piece at a time.

    Attributes:
      name: in Hugging Face's layout, for messages too.
      file: where it lies, or what it lies in; for messages.
      shape, dtype: as stored, seen in Hugging Face's layout.
      open: makes a reader, which takes what it finds.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], ReadRows]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows_per_piece(self) -> int:
        return max(_PIECE // math.prod(self.shape[1:]), 1)

    def reader(self) -> ReadRows:
        """Makes a reader that looks at what it reads.

        Raises:
          CheckpointError: now or when rows are read: they cannot be, or hold NaN or an infinite number.
        """
        read = self.open()

        def read_finite(rows: slice) -> HostArray:
            piece = read(rows)
            if _is_finite(piece):
                return piece
            raise CheckpointError(
                f"{self.file}: tensor {self.name} holds NaN or an infinite number, so every answer would be noise; "
                "download the file again, or take another checkpoint"
            )

        return read_finite

    def pieces(self) -> Iterator[tuple[slice, HostArray]]:
        """All of it, some rows at a time, in the stored type.

        Raises:
          CheckpointError: as `reader`.
        """
        read = self.reader()
        for start in range(0, self.shape[0], self.rows_per_piece):
            rows = slice(start, min(start + self.rows_per_piece, self.shape[0]))
            yield rows, read(rows)

    def whole(self) -> HostArray:
        """All of it at once."""
        out = np.empty(self.shape, self.dtype)
        for rows, piece in self.pieces():
            out[rows] = piece
        return out


type Tensors = Mapping[str, StoredTensor]
"""A checkpoint's tensors by their names."""


def bytes_of(array: HostArray) -> memoryview:
    """An array's numbers, row by row, as they lie in memory."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _is_finite(array: HostArray) -> bool:
    if array.dtype == BFLOAT16:  # by the exponent's bits, as NumPy would widen one number at a time
        return bool(((array.view(np.uint16) & 0x7F80) != 0x7F80).all())
    return array.dtype == np.int8 or bool(np.isfinite(array).all())
