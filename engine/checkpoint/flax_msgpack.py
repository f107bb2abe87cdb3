"""Official checkpoints in one msgpack file, as `flax.serialization` writes its tree of parameters.

The file is read header by header, without the arrays' bytes. A library would take the memory that a header claims. This
reader takes none: it steps over the bytes of an array, and fails when they would end behind the file.
"""

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ..types.errors import CheckpointError
from ..types.host_memory import HostArray
from .format import CheckpointFormat, FoundCheckpoint, ReadRows
from .layout import FlaxView
from .official import OfficialArray, check_dtype, found_arrays, tensors_of, without_root

_SUFFIX: Final = ".msgpack"

_MAX_DEPTH: Final = 16
"""Maximum depth of nested values."""

_MAX_LENGTH: Final = 2**16
"""Maximum number of items of a map or a list, and of bytes of a key."""

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


def _open(file: Path) -> dict[str, OfficialArray]:
    """Returns the arrays of a file by their official names, without reading them.

    Raises:
      CheckpointError: The file is truncated, holds anything but arrays, or an array of a dtype that is not supported.
    """
    try:
        data: Any = np.memmap(file, np.uint8, "r")
        arrays = without_root(read_arrays(data))
    except (MsgpackError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: is no whole Flax checkpoint: {error}; download it again") from None
    for name, array in arrays.items():
        if array.num_bytes != math.prod(array.shape) * check_dtype(file, name, array.dtype).itemsize:
            raise CheckpointError(
                f"{file}: array {name} has {array.num_bytes} bytes, which are not {list(array.shape)} numbers of type "
                f"{array.dtype}; download it again"
            )
    return {name: OfficialArray(a.shape, a.dtype, partial(_reader, data, a)) for name, a in arrays.items()}


def _reader(data: Any, array: FileArray, view: FlaxView) -> ReadRows:
    """Returns a reader of a tensor's rows. A split array is read whole unless its rows are the tensor's."""
    dtype = np.dtype(array.dtype)
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
    return found_arrays(directory, files[0], _open(files[0])) if files else None


FLAX_MSGPACK: Final = CheckpointFormat(
    find=_find,
    owns=lambda weights: len(weights) == 1 and weights[0].suffix == _SUFFIX,
    open=lambda weights, config: nullcontext(tensors_of(weights[0], _open(weights[0]), config)),
)


def read_arrays(data: Any) -> dict[str, FileArray]:
    """Returns the arrays of a file by the keys that lead to them, joined by dots.

    Args:
      data: The file's bytes, such as a memory map.

    Raises:
      MsgpackError: The file ends too early, or holds anything but arrays in nested maps.
    """
    reader = _Reader(data, Span(0, len(data)))
    tree = reader.value()
    if reader.position != len(data):
        raise MsgpackError(f"{len(data) - reader.position} bytes follow its end")
    return dict(_arrays(tree, ()))


def _arrays(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, FileArray]]:
    if isinstance(value, Mapping) and _CHUNKED not in value:
        for key, item in value.items():
            yield from _arrays(item, (*path, key))
        return
    name = ".".join(path)
    try:
        yield name, value if isinstance(value, FileArray) else _chunked(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise MsgpackError(f"{name or 'its root'} is no array of numbers") from None


def _chunked(value: Any) -> FileArray:
    sizes, parts = value["shape"], value["chunks"]
    shape = _shape([sizes[str(axis)] for axis in range(len(sizes))])
    chunks: list[FileArray] = [parts[str(number)] for number in range(len(parts))]
    (dtype,) = {chunk.dtype for chunk in chunks}
    return FileArray(shape, dtype, tuple(span for chunk in chunks for span in chunk.chunks))


def _shape(value: Any) -> tuple[int, ...]:
    """Returns a list of sizes as a shape.

    Raises:
      ValueError: It is no list of sizes.
    """
    if not isinstance(value, list) or not all(isinstance(size, int) and size >= 0 for size in value):
        raise ValueError
    return tuple(value)


class _Reader:
    """Reads the values in a span of a file, in order. Bytes become their place in the file."""

    def __init__(self, data: Any, span: Span) -> None:
        self._data = data
        self._end = span.start + span.length
        self.position = span.start

    def value(self, depth: int = 0) -> Any:
        """Reads the next value."""
        if depth > _MAX_DEPTH:
            raise MsgpackError(f"it is nested deeper than {_MAX_DEPTH} levels")
        code = self._number("B")
        if code < 0x80 or code == _TRUE:
            return code
        if code in _INTEGERS:
            return self._number(_INTEGERS[code])
        if code not in _KINDS:
            raise MsgpackError(f"it holds a value of msgpack's type {code:#x}, which no array needs")
        kind, size = _KINDS[code]
        length = size if isinstance(size, int) else self._number(size)
        if kind == "bytes":
            return self._skip(length)
        if kind == "extension":
            return self._array(self._number("b"), self._skip(length))
        if length > _MAX_LENGTH:
            raise MsgpackError(f"a {kind} has the length {length}")
        if kind == "text":
            return self._text(length)
        if kind == "list":
            return [self.value(depth + 1) for _ in range(length)]
        return {self._key(): self.value(depth + 1) for _ in range(length)}

    def _key(self) -> str:
        key = self.value(_MAX_DEPTH)
        if not isinstance(key, str):
            raise MsgpackError("a key is no text")
        return key

    def _array(self, code: int, span: Span) -> FileArray:
        try:
            shape, dtype, data = _Reader(self._data, span).value()
            if code == _ARRAY and isinstance(dtype, str) and isinstance(data, Span):
                return FileArray(_shape(shape), dtype, (data,))
        except (TypeError, ValueError):
            pass
        raise MsgpackError("an extension is no array of numbers")

    def _text(self, length: int) -> str:
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


_TRUE: Final = 0xC3
"""Code of the value of `_CHUNKED`."""

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
