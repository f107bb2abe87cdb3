"""Checkpoints on disk: the record of a format, which finds and opens them, and their tensors.

Tensors have Hugging Face's names and shapes in every format.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np

from ..model.config import ModelConfig
from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from ..types.snapshot import is_finite

TOKENIZER_FILES: Final = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
"""Files that identify the folder of a model's tokenizer; one is sufficient."""

type ReadRows = Callable[[slice], HostArray]
"""Function that reads a slice of a tensor's rows, along its first axis. It may have a cache."""

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)

_PIECE: Final = 2**22
"""Elements that are read at a time."""

_WHOLE: Final = 64 * 2**20
"""Maximum bytes of a file that is hashed whole; larger ones are sampled, `_SAMPLES` evenly spread pieces each."""

_SAMPLES: Final = 256

_SAMPLE_BYTES: Final = 64 * 2**10
"""Bytes of a sampled piece."""


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
            if piece.dtype.kind in "iu" or is_finite(piece):
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


class FoundCheckpoint(NamedTuple):
    """Checkpoint on this machine, not opened yet.

    Attributes:
      config: The model's config.
      directory: Folder of the tokenizer, the chat template and the generation defaults, if there are any.
      weights: Files or folders with the tensors.
    """

    config: ModelConfig
    directory: Path
    weights: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class CheckpointFormat:
    """Checkpoint format: one row of `roost.engine.checkpoint.source.FORMATS`.

    Attributes:
      find: Returns the checkpoint in a folder; None if the folder has none of this format. Raises `CheckpointError` if
        the checkpoint is broken.
      owns: Returns whether `FoundCheckpoint.weights` are of this format.
      open: Opens weights; the tensors have Hugging Face's names and shapes.
    """

    find: Callable[[Path], FoundCheckpoint | None]
    owns: Callable[[Sequence[Path]], bool]
    open: Callable[[Sequence[Path], ModelConfig], AbstractContextManager[Tensors]]


def tokenizer_directory(directory: Path) -> Path:
    """Returns the folder of the tokenizer: the checkpoint's folder, or its parent if only that has a tokenizer."""
    places = (directory, directory.resolve().parent)
    return next((place for place in places for file in TOKENIZER_FILES if (place / file).is_file()), directory)


def content_pieces(path: Path) -> Iterator[bytes]:
    """Yields a file's name and size, then its bytes: all of them, or samples of a large file."""
    size = path.stat().st_size
    yield f"{path.name} {size}".encode()
    with path.open("rb") as file:
        if size <= _WHOLE:
            yield file.read()
            return
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)
