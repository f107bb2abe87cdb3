"""Checks and orders the lines of an uploaded batch file while they arrive."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from ...errors.request_errors import ApiError, bad_value
from .batch_lines import LineError, Parse, max_line_bytes, parse_line, too_long
from .batch_order import SegmentOrder
from .file_table import SEGMENT_LINES


class LineSplitter:
    """Splits pieces of a file into lines with their newlines. Empty lines are dropped.

    Args:
      max_body_bytes: Maximum bytes of a line's body.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._rest = bytearray()
        self._num_lines = 0
        self._max_body_bytes = max_body_bytes
        self._max_bytes = max_line_bytes(max_body_bytes)

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the lines that a piece completes.

        Raises:
          ApiError: A line is too long.
        """
        self._rest += piece
        if b"\n" not in piece:
            self._check(len(self._rest))
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        found = []
        for line in lines:
            self._check(len(line))
            if line.strip():
                found.append(line + b"\n")
                self._num_lines += 1
        self._check(len(rest))
        return found

    def end(self) -> list[bytes]:
        """Returns the last line, if it has no newline."""
        rest, self._rest = bytes(self._rest), bytearray()
        return [rest + b"\n"] if rest.strip() else []

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise line_error(self._num_lines + 1, too_long(self._max_body_bytes))


class InputCheck:
    """Checks that every line is a request and that each `custom_id` occurs once, and decides the order in which lines
    run.

    Attributes:
      num_lines: Number of lines so far.
      num_bytes: Size of these lines.
      urls: Endpoints that these lines name.

    Args:
      max_body_bytes: Maximum bytes of a line's body.
      parse: See `parse_line`.
    """

    def __init__(self, max_body_bytes: int, parse: Parse) -> None:
        self.num_lines = 0
        self.num_bytes = 0
        self.urls: set[str] = set()
        self._max_body_bytes = max_body_bytes
        self._parse = parse
        self._hashes = array("Q")
        self._order = SegmentOrder(SEGMENT_LINES)

    def add(self, lines: Sequence[bytes]) -> list[Sequence[int]]:
        """Checks the next lines, and returns the orders of the segments that they complete; see `SegmentOrder`.

        Raises:
          ApiError: A line is not a request.
        """
        segments = []
        for raw in lines:
            self.num_lines += 1
            self.num_bytes += len(raw)
            try:
                line, facts = parse_line(raw, self.num_lines, self._max_body_bytes, self._parse)
            except LineError as error:
                raise line_error(self.num_lines, str(error)) from None
            self.urls.add(line.url)
            digest = blake2b(line.custom_id.encode(), digest_size=8).digest()
            self._hashes.append(int.from_bytes(digest))
            self._order.add(facts)
            if self._order.is_full:
                segments.append(self._order.take())
        return segments

    def finish(self) -> tuple[str, Sequence[int]]:
        """Returns the endpoint of all lines, empty if they name several, and the order of the last segment.

        Raises:
          ApiError: The file has no line, or a `custom_id` occurs twice.
        """
        if not self.num_lines:
            raise bad_value("file", "file: has no line")
        hashes = np.frombuffer(self._hashes, np.uint64)
        order = np.argsort(hashes, kind="stable")
        equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        if len(equal):
            first, second = order[equal[0]] + 1, order[equal[0] + 1] + 1
            raise line_error(int(second), f"custom_id is that of line {first}; each must occur once")
        return next(iter(self.urls)) if len(self.urls) == 1 else "", self._order.take()


def line_error(number: int, message: str) -> ApiError:
    """Returns the error about a line of an upload. Lines are numbered from 1; empty lines are not counted."""
    return bad_value("file", f"file: line {number} of the requests: {message}")
