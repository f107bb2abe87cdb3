"""Messages between the server and a grammar process: a header, then bytes."""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct("<BII")

TOKEN: Final = struct.Struct("<I")
COST: Final = struct.Struct("<dQ")
"""CPU seconds of a compilation, and bytes of memory that the grammar holds."""


class Kind(IntEnum):
    """Kinds of messages.

    Attributes:
      COMPILE, COMPILE_GBNF: to the process, first: the source of the grammar, in llguidance's notations or in GBNF.
      NEXT: to the process: the token that a follower takes, or nothing for its first mask; answered by MASK or FAILED.
      DROP: to the process: a follower has ended.
      TOKENS: to the process: the token ids of a text.
      COMPILED: to the server: the grammar can be followed; with its cost.
      REFUSED: to the server: why the grammar cannot be compiled, behind the cost.
      MASK: to the server: which tokens a follower may take next, a bit each.
      FAILED: to the server: why an answer cannot be followed any further.
      TOKENIZE: to the server: a text whose token ids are needed.
    """

    COMPILE = 0
    COMPILE_GBNF = 1
    NEXT = 2
    DROP = 3
    TOKENS = 4
    COMPILED = 5
    REFUSED = 6
    MASK = 7
    FAILED = 8
    TOKENIZE = 9


class Frame(NamedTuple):
    """One message.

    Attributes:
      follower: the answer that it is about; 0 for the grammar itself.
    """

    kind: Kind
    follower: int = 0
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        """Returns the message as it is sent."""
        return _HEADER.pack(self.kind, self.follower, len(self.payload)) + self.payload


class FrameReader:
    """Puts messages together from bytes that come in any pieces."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yields the messages that are complete now."""
        self._data += data
        while len(self._data) >= _HEADER.size:
            kind, follower, length = _HEADER.unpack_from(self._data)
            end = _HEADER.size + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[_HEADER.size : end])
            del self._data[:end]
            yield Frame(Kind(kind), follower, payload)
