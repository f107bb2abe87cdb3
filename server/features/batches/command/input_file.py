"""Input of `roost batch`: an index with a few bytes per line, and the lines in the order in which they run."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from ....terminal.failure import CommandError
from ..batch_lines import MAX_LINE_BYTES, BatchLine, LineError, line_id, parse_line
from ..batch_order import Column, group_hash, run_order

_MAX_SHOWN: Final = 5
"""Maximum number of duplicates that an error names."""


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A line that is not a request.

    Attributes:
      number: Number of the line in the file, from 1.
      custom_id: The line's id, if it has a valid one.
      message: Reason, for the user.
    """

    number: int
    custom_id: str | None
    message: str


@dataclass(frozen=True, slots=True)
class InputIndex:
    """Index of a file, with 40 bytes per line. Empty lines have no entry.

    Attributes:
      numbers: Numbers of the lines in the file, from 1.
      offsets: Places of the lines in the file, in bytes.
      hashes: Hashes of their ids; see `id_hash`.
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

    def line(self, place: int) -> BatchLine | InvalidLine:
        """Returns the line at a place of the index."""
        self._file.seek(int(self.index.offsets[place]))
        raw, number = self._file.readline(MAX_LINE_BYTES + 1), int(self.index.numbers[place])
        try:
            return parse_line(raw, number)[0]
        except LineError as error:
            return InvalidLine(number, error.custom_id, str(error))

    def lines(self, is_done: Column) -> Iterator[tuple[int, BatchLine | InvalidLine]]:
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
        if isinstance(first, InvalidLine) and all(isinstance(line, InvalidLine) for line in lines):
            raise CommandError(f"{self.path}: no line is a request; line {first.number}: {first.message}")

    def _check_duplicates(self) -> None:
        order = np.argsort(self.index.hashes, kind="stable")
        ordered = self.index.hashes[order]
        pairs = sorted((int(order[each]), int(order[each + 1])) for each in np.flatnonzero(ordered[1:] == ordered[:-1]))
        if not pairs:
            return
        numbers = self.index.numbers
        shown = [f"{self.line(a).custom_id!r} in lines {numbers[a]} and {numbers[b]}" for a, b in pairs[:_MAX_SHOWN]]
        more = f", and {len(pairs) - _MAX_SHOWN} more" if len(pairs) > _MAX_SHOWN else ""
        raise CommandError(f"{self.path}: a custom_id must occur once: {', '.join(shown)}{more}")


def id_hash(custom_id: str | None, number_id: str) -> int:
    """Returns the hash by which a line is identified in the input and in the output.

    Args:
      custom_id: The line's `custom_id`, if it has a valid one.
      number_id: Id from `line_id`, which is used if there is no valid `custom_id`.
    """
    known_by = (f"\0{number_id}" if custom_id is None else custom_id).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(known_by, digest_size=8).digest())


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
        line, facts = parse_line(raw, number)
    except LineError as error:
        return id_hash(error.custom_id, line_id(number)), 0, 0
    return id_hash(line.custom_id, line_id(number)), group_hash(facts), facts.num_tokens


def _skip_rest(file: BinaryIO, raw: bytes) -> int:
    """Skips the rest of a line that is too long, and returns its size."""
    num_bytes = 0
    while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
        raw = file.readline(MAX_LINE_BYTES + 1)
        num_bytes += len(raw)
    return num_bytes
