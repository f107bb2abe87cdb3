"""Input and output of `roost batch`. The output is also the record of its progress.

The input has an index with a few bytes per line, and its lines in the order in which they run.
"""

import fcntl
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import orjson

from ....terminal.exits import CommandError
from ..batch_lines import (
    BatchLine,
    Column,
    LineError,
    id_hash,
    line_id,
    parse_line,
    repeated,
    run_order,
)

_INDEX: Final = np.dtype([(name, np.uint64) for name in ("number", "offset", "hash", "group", "num_tokens")])
"""Entry of a line in the index: its number from 1, its place in bytes, the hash of its id (see `place_hash`), the hash
of the beginning of its prompt, and the estimate of its tokens. Empty lines have no entry.
"""


@contextmanager
def open_input(path: Path) -> Iterator["InputFile"]:
    """Opens and indexes a file of requests.

    Raises:
      CommandError: The file cannot be read more than once, or an id occurs twice.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise CommandError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        if not file.seekable():
            raise CommandError(f"{path}: must be a file, since its lines are read twice; save the pipe's output first")
        yield InputFile(path, file)


class InputFile:
    """A file of requests. Only one line at a time is in memory.

    Attributes:
      index: Its index.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.index = _index(file)
        self._check_duplicates()

    def line(self, place: int) -> BatchLine | LineError:
        """Returns the line at a place of the index, or the reason why it is not a request."""
        self._file.seek(int(self.index["offset"][place]))
        try:
            return parse_line(self._file.readline(), self.number(place))
        except LineError as error:
            return error

    def number(self, place: int) -> int:
        """Returns the number of the line at a place of the index, from 1."""
        return int(self.index["number"][place])

    def lines(self, is_done: Column) -> Iterator[tuple[int, BatchLine | LineError]]:
        """Yields the places and lines that are not done, in the order of `run_order`.

        Args:
          is_done: Whether each line of the index is done.
        """
        order = run_order(self.index["group"], self.index["num_tokens"])
        for place in order[~is_done[order]]:
            yield int(place), self.line(int(place))

    def check_requests(self) -> None:
        """Checks that at least one line is a request, before a model is loaded.

        Raises:
          CommandError: No line is a request.
        """
        if not len(self.index):
            raise CommandError(f"{self._path}: has no lines; each has a request, as in OpenAI's Batch API")
        if not self.index["group"].any():
            raise CommandError(f"{self._path}: no line is a request; line {self.number(0)}: {self.line(0)}")

    def _check_duplicates(self) -> None:
        for first, second in repeated(self.index["hash"]):
            lines = f"{self.number(first)} and {self.number(second)}"
            raise CommandError(
                f"{self._path}: a custom_id must occur once: {self.line(first).custom_id!r} in lines {lines}"
            )


def place_hash(custom_id: str | None, number_id: str) -> int:
    """Returns the hash by which a line is identified in the input and in the output.

    Args:
      custom_id: The line's `custom_id`, if it has a valid one.
      number_id: Id from `line_id`, which is used if there is no valid `custom_id`.
    """
    return id_hash(f"\0{number_id}" if custom_id is None else custom_id)


def _index(file: BinaryIO) -> Column:
    entries = array("Q")
    offset = 0
    for number, raw in enumerate(file, 1):
        if raw.strip():
            entries.extend((number, offset, *_facts(raw, number)))
        offset += len(raw)
    return np.frombuffer(entries, _INDEX)


def _facts(raw: bytes, number: int) -> tuple[int, int, int]:
    """Returns the hash of a line's id, the hash of its prompt's beginning, and the estimate of its tokens.

    The last two are 0 if the line is not a request.
    """
    try:
        line = parse_line(raw, number)
    except LineError as error:
        return place_hash(error.custom_id, line_id(number)), 0, 0
    return id_hash(line.custom_id), line.group, line.num_tokens


@contextmanager
def open_output(path: Path, index: Column) -> Iterator["OutputFile"]:
    """Opens or creates an output, which other processes cannot open at the same time.

    Args:
      index: Index of the input.

    Raises:
      CommandError: The file cannot be used, or is not the output of this input.
    """
    try:
        file = FileIO(path, "a+")
    except OSError as error:
        raise CommandError(f"{path}: cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"{path}: another roost batch is writing it") from None
        yield OutputFile(path, file, index)


class OutputFile:
    """A file with one line for each finished line of the input, in the order in which they ended.

    The constructor reads the file of an earlier run, and removes a last line that was only partly written.

    Attributes:
      is_done: Whether each line of the index has its output line.
    """

    def __init__(self, path: Path, file: FileIO, index: Column) -> None:
        self._path = path
        self._file = file
        self._hashes = index["hash"]
        self._order = np.argsort(self._hashes, kind="stable")
        self._offsets = np.zeros(len(index), np.uint64)
        self.is_done = np.zeros(len(index), bool)
        self._end = 0
        self._read()
        file.truncate(self._end)

    def append(self, place: int, line: bytes) -> None:
        """Appends the output line of the input's line at a place of the index. The line survives if the process is
        killed.

        Raises:
          CommandError: The disk is full.
        """
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._error("written", error) from None
        self._note(place, len(line))

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
            with self._path.open("rb") as lines, beside.open("wb") as copy:
                for offset in self._offsets[self.is_done]:
                    lines.seek(int(offset))
                    copy.write(lines.readline())
                copy.flush()
                os.fsync(copy.fileno())
            beside.replace(self._path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise self._error("sorted", error) from None

    def _read(self) -> None:
        """Notes the complete lines of an earlier run."""
        with self._path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if not raw.endswith(b"\n"):
                    break
                place = self._place(raw)
                if place is None or self.is_done[place]:
                    what = "is not of this input" if place is None else "repeats an earlier line"
                    raise CommandError(f"{self._path}: line {number} {what}; give another file for the output")
                self._note(place, len(raw))

    def _note(self, place: int, num_bytes: int) -> None:
        self._offsets[place], self.is_done[place] = self._end, True
        self._end += num_bytes

    def _place(self, raw: bytes) -> int | None:
        """Returns the place of an output line in the index; None if the index does not have it."""
        try:
            line = orjson.loads(raw)
            known_by = np.uint64(place_hash(line["custom_id"], line["id"]))
        except (ValueError, LookupError, TypeError, AttributeError):
            return None
        found = int(np.searchsorted(self._hashes, known_by, sorter=self._order))
        place = int(self._order[min(found, len(self._order) - 1)])
        return place if self._hashes[place] == known_by else None

    def _error(self, done: str, error: OSError) -> CommandError:
        return CommandError(
            f"{self._path}: cannot be {done} ({error.strerror}); run the same command again to continue"
        )
