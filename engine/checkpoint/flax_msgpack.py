"""Checkpoints of the official library in one msgpack file, as `flax.serialization` writes its tree of parameters."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..model.config import ModelConfig
from ..types.arrays import HostArray
from ..types.errors import CheckpointError
from .format import CheckpointFormat, FoundCheckpoint, tokenizer_directory
from .layout import EMBEDDING_ARRAY, FlaxView
from .msgpack_arrays import FileArray, MsgpackError, read_arrays
from .official import ARRAY_DTYPES, check_dtype, config_of_arrays, views_of, without_root
from .tensors import ReadRows, StoredTensor, Tensors

_SUFFIX: Final = ".msgpack"


def read_headers(file: Path) -> dict[str, FileArray]:
    """Returns the arrays of a file by their official names, without reading them.

    Raises:
      CheckpointError: The file is truncated, holds anything but arrays, or an array of a dtype that is not supported.
    """
    try:
        arrays = without_root(read_arrays(_mapped(file)))
    except (MsgpackError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is no whole Flax checkpoint: {error}; download it again") from None
    for name, array in arrays.items():
        check_dtype(file, name, array.dtype)
        if array.num_bytes != math.prod(array.shape) * ARRAY_DTYPES[array.dtype].itemsize:
            raise CheckpointError(
                f"{file}: array {name} has {array.num_bytes} bytes, which are not {list(array.shape)} numbers of type "
                f"{array.dtype}; download it again"
            )
    return arrays


@contextmanager
def open_msgpack(file: Path, config: ModelConfig) -> Iterator[Tensors]:
    """Yields the tensors of a checkpoint with Hugging Face's names and shapes; unknown arrays keep their own names.

    Raises:
      CheckpointError: See `read_headers`.
    """
    arrays, data = read_headers(file), _mapped(file)
    yield {name: _stored(file, data, name, view, arrays[view.key]) for name, view in views_of(arrays, config).items()}


def _mapped(file: Path) -> Any:
    """Returns the bytes of a file as a memory map."""
    return np.memmap(file, np.uint8, "r")


def _stored(file: Path, data: Any, name: str, view: FlaxView, array: FileArray) -> StoredTensor:
    dtype = ARRAY_DTYPES[array.dtype]
    shape = view.shape_of(np.broadcast_to(np.zeros((), dtype), array.shape))
    return StoredTensor(name, file, shape, dtype, lambda: _reader(data, view, array, dtype))


def _reader(data: Any, view: FlaxView, array: FileArray, dtype: np.dtype[Any]) -> ReadRows:
    """Returns a reader of a tensor's rows. A split array is read whole unless its rows are the tensor's."""
    chunks = [np.ndarray((span.length // dtype.itemsize,), dtype, data, span.start) for span in array.chunks]
    if len(chunks) > 1 and view == FlaxView(view.key):
        width = math.prod(array.shape[1:])
        return lambda rows: _joined(chunks, rows.start * width, rows.stop * width).reshape(-1, *array.shape[1:])
    tensor = view.of((chunks[0] if len(chunks) == 1 else np.concatenate(chunks)).reshape(array.shape))
    return lambda rows: np.array(tensor[rows])  # a copy, because numbers in the file are not aligned


def _joined(chunks: Sequence[HostArray], start: int, stop: int) -> HostArray:
    """Returns the elements from `start` to `stop` of flat chunks that follow each other."""
    parts, offset = [], 0
    for chunk in chunks:
        parts.append(chunk[max(start - offset, 0) : max(stop - offset, 0)])
        offset += len(chunk)
    return np.concatenate(parts)


def _find(directory: Path) -> FoundCheckpoint | None:
    """Returns the checkpoint in a folder with one msgpack file."""
    files = sorted(directory.glob(f"*{_SUFFIX}"))
    if len(files) > 1:
        raise CheckpointError(f"{directory}: holds several checkpoints; keep one of {', '.join(p.name for p in files)}")
    if not files:
        return None
    arrays = read_headers(files[0])
    embedding = arrays.get(EMBEDDING_ARRAY)
    config = config_of_arrays(
        directory, {name: array.shape for name, array in arrays.items()}, embedding.dtype if embedding else "float32"
    )
    return FoundCheckpoint(config, tokenizer_directory(directory), (files[0],))


FLAX_MSGPACK: Final = CheckpointFormat(
    name="flax-msgpack",
    title="Flax's msgpack",
    find=_find,
    owns=lambda weights: len(weights) == 1 and weights[0].suffix == _SUFFIX,
    open=lambda weights, config: open_msgpack(weights[0], config),
)
