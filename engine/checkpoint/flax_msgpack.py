"""Official checkpoints in one msgpack file, as `flax.serialization` writes its tree of parameters.

The file is read header by header, without the arrays' bytes. A library would take the memory that a header claims. This
reader takes none: it steps over the bytes of an array, and fails when they would end behind the file.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ..model.config import ModelConfig
from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from .format import CheckpointFormat, FoundCheckpoint, ReadRows, StoredTensor, Tensors
from .layout import FlaxView
from .official import ARRAY_DTYPES, check_dtype, found_arrays, views_of, without_root

_SUFFIX: Final = ".msgpack"

_MAX_DEPTH: Final = 16
"""Maximum depth of nested values."""

_MAX_TEXT: Final = 1024
"""Maximum bytes of a key."""

_MAX_ITEMS: Final = 2**20
"""Maximum number of items of a map or a list."""

_CHUNKED: Final = "__msgpack_chunked_array__"
"""Key that marks an array of more than a gibibyte, which Flax writes as a map of flat chunks."""

_ARRAY: Final = 1
"""Code of Flax's extension type for arrays: a list of the shape, the dtype's name, and the bytes."""


class MsgpackError(Exception):
    """The file is not what `flax.serialization` writes; the text says why."""


class Span(NamedTuple):
    """Bytes of a file."""

    start: int
    length: int


class _Extension(NamedTuple):
    code: int
    span: Span


@dataclass(frozen=True, slots=True)
class FileArray:
    """Array in a file.

    Attributes:
      dtype: Name of the dtype.
      chunks: Places of its elements in row-major order; several if Flax split it.
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[Span, ...]

    @property
    def num_bytes(self) -> int:
        """Total bytes of the chunks."""
        return sum(chunk.length for chunk in self.chunks)


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
    return found_arrays(directory, files[0], {name: (array.shape, array.dtype) for name, array in arrays.items()})


FLAX_MSGPACK: Final = CheckpointFormat(
    find=_find,
    owns=lambda weights: len(weights) == 1 and weights[0].suffix == _SUFFIX,
    open=lambda weights, config: open_msgpack(weights[0], config),
)


def read_arrays(data: Any) -> dict[str, FileArray]:
    """Returns the arrays of a file by the keys that lead to them, joined by dots.

    Args:
      data: The file's bytes, such as a memory map.

    Raises:
      MsgpackError: The file ends too early, or holds anything but arrays in nested maps.
    """
    reader = _Reader(data)
    tree = reader.value()
    if reader.position != len(data):
        raise MsgpackError(f"{len(data) - reader.position} bytes follow its end")
    return dict(_arrays(data, tree, ()))


def _arrays(data: Any, value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, FileArray]]:
    name = ".".join(path)
    if isinstance(value, Mapping) and _CHUNKED not in value:
        for key, item in value.items():
            yield from _arrays(data, item, (*path, key))
        return
    try:
        array = _chunked(data, value) if isinstance(value, Mapping) else _array(data, value)
    except (MsgpackError, KeyError, TypeError, ValueError):
        raise MsgpackError(f"{name or 'its root'} is no array of numbers") from None
    yield name, array


def _array(data: Any, value: Any) -> FileArray:
    if not isinstance(value, _Extension) or value.code != _ARRAY:
        raise MsgpackError
    reader = _Reader(data, value.span)
    shape, dtype, span = reader.value()
    if not _is_shape(shape) or not isinstance(dtype, str) or not isinstance(span, Span):
        raise MsgpackError
    return FileArray(tuple(shape), dtype, (span,))


def _chunked(data: Any, value: Mapping[str, Any]) -> FileArray:
    shape = [value["shape"][str(axis)] for axis in range(len(value["shape"]))]
    chunks = [_array(data, value["chunks"][str(number)]) for number in range(len(value["chunks"]))]
    (dtype,) = {chunk.dtype for chunk in chunks}
    if not _is_shape(shape) or math.prod(shape) != sum(math.prod(chunk.shape) for chunk in chunks):
        raise MsgpackError
    return FileArray(tuple(shape), dtype, tuple(span for chunk in chunks for span in chunk.chunks))


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(size, int) and size >= 0 for size in value)


class _Reader:
    """Reads values in order; bytes and extensions become places in the file."""

    def __init__(self, data: Any, span: Span | None = None) -> None:
        """Reads all data, or a span of it."""
        start, length = span or Span(0, len(data))
        self._data = data
        self._end = start + length
        self.position = start

    def value(self, depth: int = 0) -> Any:
        """Reads the next value."""
        if depth > _MAX_DEPTH:
            raise MsgpackError(f"it is nested deeper than {_MAX_DEPTH} levels")
        code = self._number("B")
        if code < 0x80:
            return code
        if code in _INTEGERS:
            return self._number(_INTEGERS[code])
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code not in _KINDS:
            raise MsgpackError(f"it holds a value of msgpack's type {code:#x}, which no array needs")
        kind, size = _KINDS[code]
        length = size if isinstance(size, int) else self._number(size)
        match kind:
            case "map":
                return self._map(length, depth)
            case "list":
                return self._list(length, depth)
            case "text":
                return self._text(length)
            case "bytes":
                return self._skip(length)
        return _Extension(self._number("b"), self._skip(length))

    def _map(self, length: int, depth: int) -> dict[str, Any]:
        self._check_items(length)
        found: dict[str, Any] = {}
        for _ in range(length):
            key = self.value(depth + 1)
            if not isinstance(key, str) or key in found:
                raise MsgpackError(f"a key is {key!r}, which is no text or stands twice")
            found[key] = self.value(depth + 1)
        return found

    def _list(self, length: int, depth: int) -> list[Any]:
        self._check_items(length)
        return [self.value(depth + 1) for _ in range(length)]

    def _check_items(self, length: int) -> None:
        if length > min(_MAX_ITEMS, self._end - self.position):
            raise MsgpackError(f"it ends before its {length} items")

    def _text(self, length: int) -> str:
        if length > _MAX_TEXT:
            raise MsgpackError(f"a text has {length} bytes")
        start, _ = self._skip(length)
        try:
            return bytes(self._data[start : start + length]).decode()
        except UnicodeDecodeError:
            raise MsgpackError("a text is not UTF-8") from None

    def _number(self, kind: str) -> int:
        start, length = self._skip(struct.calcsize(f">{kind}"))
        (number,) = struct.unpack(f">{kind}", self._data[start : start + length])
        return int(number)

    def _skip(self, length: int) -> Span:
        if length > self._end - self.position:
            raise MsgpackError(f"it ends {length - (self._end - self.position)} bytes too early")
        span = Span(self.position, length)
        self.position += length
        return span


_CONSTANTS: Final[Mapping[int, bool | None]] = {0xC0: None, 0xC2: False, 0xC3: True}

_INTEGERS: Final[Mapping[int, str]] = {0xCC: "B", 0xCD: "H", 0xCE: "I", 0xCF: "Q"}
"""Formats of unsigned integers, for `struct`, by their codes."""

_KINDS: Final[Mapping[int, tuple[str, int | str]]] = {
    **{0x80 + length: ("map", length) for length in range(16)},
    **{0x90 + length: ("list", length) for length in range(16)},
    **{0xA0 + length: ("text", length) for length in range(32)},
    **{0xC4 + index: ("bytes", size) for index, size in enumerate("BHI")},
    **{0xC7 + index: ("extension", size) for index, size in enumerate("BHI")},
    **{0xD4 + index: ("extension", 2**index) for index in range(5)},
    **{0xD9 + index: ("text", size) for index, size in enumerate("BHI")},
    **{0xDC + index: ("list", size) for index, size in enumerate("HI")},
    **{0xDE + index: ("map", size) for index, size in enumerate("HI")},
}
"""Kinds of values with a length, and their lengths, or the formats of lengths that follow their codes."""
