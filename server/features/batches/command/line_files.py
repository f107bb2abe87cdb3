"""Input and output of `roost batch`. The output is also the record of its progress.

The input has an index with a few bytes per line, and its lines in the order in which they run.
"""

import fcntl
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import orjson

from ....terminal.exits import CommandError
from ..batch_lines import (
    MAX_LINE_BYTES,
    BatchLine,
    Column,
    LineError,
    id_hash,
    line_id,
    parse_line,
    repeated,
    run_order,
)

_MAX_SHOWN: Final = 5
"""Maximum number of duplicates that an error names."""


@dataclass(frozen=True, slots=True)
class InputIndex:
    """Index of a file, with 40 bytes per line. Empty lines have no entry.

    Attributes:
      numbers: Numbers of the lines in the file, from 1.
      offsets: Places of the lines in the file, in bytes.
      hashes: Hashes of their ids; see `place_hash`.
      groups: Hashes of the beginnings of their prompts.
      num_tokens: Estimates of their prompt tokens and generated tokens.
    """

    numbers: Column
    offsets: Column
    hashes: Column
    groups: Column
    num_tokens: Column

    def __len__(self) -> int:
        return len(self.numbers)


class InputFile:
    """A file of requests. Only one line at a time is in memory.

    Attributes:
      path: Path of the file.
      index: Its index.

    Args:
      path: Path of a file that can be read more than once.

    Raises:
      CommandError: The file cannot be read, or an id occurs twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise CommandError(f"{path}: cannot be read ({error.strerror})") from None
        if not self._file.seekable():
            self._file.close()
            raise CommandError(f"{path}: must be a file, since its lines are read twice; save the pipe's output first")
        try:
            self.index = _index(self._file)
            self._check_duplicates()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "InputFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def line(self, place: int) -> BatchLine | LineError:
        """Returns the line at a place of the index, or the reason why it is not a request."""
        self._file.seek(int(self.index.offsets[place]))
        try:
            return parse_line(self._file.readline(MAX_LINE_BYTES + 1), self.number(place))
        except LineError as error:
            return error

    def number(self, place: int) -> int:
        """Returns the number of the line at a place of the index, from 1."""
        return int(self.index.numbers[place])

    def lines(self, is_done: Column) -> Iterator[tuple[int, BatchLine | LineError]]:
        """Yields the places and lines that are not done, in the order of `run_order`.

        Args:
          is_done: Whether each line of the index is done.
        """
        order = run_order(self.index.groups, self.index.num_tokens)
        for place in order[~is_done[order]]:
            yield int(place), self.line(int(place))

    def check_requests(self) -> None:
        """Checks that at least one line is a request, before a model is loaded. Usually the first line is.

        Raises:
          CommandError: No line is a request.
        """
        if not len(self.index):
            raise CommandError(f"{self.path}: has no lines; each has a request, as in OpenAI's Batch API")
        lines = map(self.line, range(len(self.index)))
        first = next(lines)
        if isinstance(first, LineError) and all(isinstance(line, LineError) for line in lines):
            raise CommandError(f"{self.path}: no line is a request; line {self.number(0)}: {first}")

    def _check_duplicates(self) -> None:
        pairs = repeated(self.index.hashes)
        if not pairs:
            return
        named = [(self.line(a).custom_id, self.number(a), self.number(b)) for a, b in pairs[:_MAX_SHOWN]]
        shown = [f"{custom_id!r} in lines {first} and {second}" for custom_id, first, second in named]
        more = f", and {len(pairs) - _MAX_SHOWN} more" if len(pairs) > _MAX_SHOWN else ""
        raise CommandError(f"{self.path}: a custom_id must occur once: {', '.join(shown)}{more}")


def place_hash(custom_id: str | None, number_id: str) -> int:
    """Returns the hash by which a line is identified in the input and in the output.

    Args:
      custom_id: The line's `custom_id`, if it has a valid one.
      number_id: Id from `line_id`, which is used if there is no valid `custom_id`.
    """
    return id_hash(f"\0{number_id}" if custom_id is None else custom_id)


def _index(file: BinaryIO) -> InputIndex:
    columns = [array("Q") for _ in range(5)]
    offset = number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        start, offset = offset, offset + len(raw) + _skip_rest(file, raw)
        number += 1
        if raw.strip():
            for column, value in zip(columns, (number, start, *_facts(raw, number)), strict=True):
                column.append(value)
    return InputIndex(*(np.frombuffer(column, np.uint64) for column in columns))


def _facts(raw: bytes, number: int) -> tuple[int, int, int]:
    """Returns the hash of a line's id, the hash of its prompt's beginning, and the estimate of its tokens."""
    try:
        line = parse_line(raw, number)
    except LineError as error:
        return place_hash(error.custom_id, line_id(number)), 0, 0
    return id_hash(line.custom_id), line.group, line.num_tokens


def _skip_rest(file: BinaryIO, raw: bytes) -> int:
    """Skips the rest of a line that is too long, and returns its size."""
    num_bytes = 0
    while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
        raw = file.readline(MAX_LINE_BYTES + 1)
        num_bytes += len(raw)
    return num_bytes


class OutputFile:
    """A file with one line for each finished line of the input, in the order in which they ended.

    The constructor reads the file of an earlier run, and removes a last line that was only partly written.

    Attributes:
      is_done: Whether each line of the index has its output line.

    Args:
      path: Path of the file, which is created if it does not exist.
      index: Index of the input.

    Raises:
      CommandError: The file cannot be used, or is not the output of this input.
    """

    def __init__(self, path: Path, index: InputIndex) -> None:
        self._path = path
        self._index = index
        self._order = np.argsort(index.hashes, kind="stable")
        self._offsets = np.zeros(len(index), np.uint64)
        self.is_done = np.zeros(len(index), bool)
        self._file = _opened(path)
        try:
            self._end = self._read()
            os.ftruncate(self._file.fileno(), self._end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "OutputFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, place: int, line: bytes) -> None:
        """Appends the output line of the input's line at a place of the index. The line survives if the process is
        killed.

        Raises:
          CommandError: The disk is full.
        """
        try:
            _write(self._file.fileno(), line, self._end)
        except OSError as error:
            raise self._error("written", error) from None
        self._offsets[place], self.is_done[place] = self._end, True
        self._end += len(line)

    def save(self) -> None:
        """Waits until all lines are on the disk."""
        os.fsync(self._file.fileno())

    def sort(self) -> None:
        """Sorts the lines into the order of the input, and replaces the file atomically.

        Raises:
          CommandError: The disk is full.
        """
        beside = self._path.with_name(f"{self._path.name}.sorting")
        try:
            with beside.open("wb") as copy:
                for offset in self._offsets[self.is_done]:
                    self._file.seek(int(offset))
                    copy.write(self._file.readline())
                copy.flush()
                os.fsync(copy.fileno())
            beside.replace(self._path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise self._error("sorted", error) from None

    def _read(self) -> int:
        """Records the lines of an earlier run, and returns the offset after the last complete line."""
        end = 0
        for number, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):
                break
            place = self._place(_known_by(raw))
            if place is None or self.is_done[place]:
                what = "is not of this input" if place is None else "repeats an earlier line"
                raise CommandError(f"{self._path}: line {number} {what}; give another file for the output")
            self._offsets[place], self.is_done[place] = end, True
            end += len(raw)
        return end

    def _place(self, known_by: int | None) -> int | None:
        """Returns the place of a line in the index by the hash of its id; None if the index does not have it."""
        if known_by is None:
            return None
        found = int(np.searchsorted(self._index.hashes, np.uint64(known_by), sorter=self._order))
        if found == len(self._index):
            return None
        place = int(self._order[found])
        return place if int(self._index.hashes[place]) == known_by else None

    def _error(self, done: str, error: OSError) -> CommandError:
        return CommandError(
            f"{self._path}: cannot be {done} ({error.strerror}); run the same command again to continue"
        )


def _known_by(raw: bytes) -> int | None:
    """Returns the hash of an output line's id; None if it is not an output line."""
    try:
        line = orjson.loads(raw)
        return place_hash(line["custom_id"], line["id"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """Writes at an offset of a file, bypassing Python's buffers and without moving their position."""
    while data:
        num_written = os.pwrite(descriptor, data, offset)
        data, offset = data[num_written:], offset + num_written


def _opened(path: Path) -> BinaryIO:
    """Opens a file for reading and writing. Other processes cannot do so at the same time."""
    try:
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "rb")  # noqa: SIM115 - OutputFile closes it
    except OSError as error:
        raise CommandError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise CommandError(f"{path}: another roost batch is writing it") from None
    return file
