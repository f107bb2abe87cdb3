"""Messages between the server and a grammar process: a header, then a payload."""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct("<BII")

TOKEN: Final = struct.Struct("<I")
COST: Final = struct.Struct("<dQ")
"""Cost of a compilation: CPU seconds, and bytes of memory that the grammar holds."""


class Notation(IntEnum):
    """Notations of a grammar's source, which the grammar's process translates.

    Attributes:
      LARK: llguidance's dialect of Lark.
      GBNF: llama.cpp's EBNF.
      REGEX: One regular expression.
    """

    LARK = 0
    GBNF = 1
    REGEX = 2


class Kind(IntEnum):
    """Kinds of messages.

    Attributes:
      COMPILE: To the process, first: a byte with the `Notation`, then the source of the grammar.
      NEXT: To the process: tokens that advance a follower, none for its first mask. The reply is MASK or FAILED.
      DROP: To the process: a follower has ended.
      TOKENS: To the process: token ids, the reply to TOKENIZE.
      COMPILED: To the server: cost of the successful compilation.
      REFUSED: To the server: cost of the compilation, and the reason for its failure.
      MASK: To the server: number of forced tokens, each the only one that a follower allows after the previous
        tokens; these tokens; and the mask of the token after them, one bit per token.
      FAILED: To the server: reason why an output cannot be followed further.
      TOKENIZE: To the server: text whose token ids are needed.
    """

    COMPILE = 0
    NEXT = 1
    DROP = 2
    TOKENS = 3
    COMPILED = 4
    REFUSED = 5
    MASK = 6
    FAILED = 7
    TOKENIZE = 8


class Frame(NamedTuple):
    """One message.

    Attributes:
      kind: Kind of the message.
      follower: Number of the follower; 0 for the grammar itself.
      payload: Content of the message.
    """

    kind: Kind
    follower: int = 0
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        """Returns the encoded message."""
        return _HEADER.pack(self.kind, self.follower, len(self.payload)) + self.payload


class FrameReader:
    """Decodes messages from a stream of bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Adds bytes and yields the messages that are complete."""
        self._data += data
        while len(self._data) >= _HEADER.size:
            kind, follower, length = _HEADER.unpack_from(self._data)
            end = _HEADER.size + length
            if len(self._data) < end:
                return
            payload = bytes(self._data[_HEADER.size : end])
            del self._data[:end]
            yield Frame(Kind(kind), follower, payload)
