"""Output of `roost batch`, which is also the record of its progress."""

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson

from ....terminal.failure import CommandError
from .input_file import InputIndex, id_hash


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
        return id_hash(line["custom_id"], line["id"])
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
