"""Vocabulary of a model, serialised for a pipe."""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_LENGTHS: Final = struct.Struct("<II")

SIZE_BYTES: Final = 8
"""Bytes of the length that precedes a serialised vocabulary."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens of a model.

    Attributes:
      tokens: Bytes of each token; names of special tokens.
      special_token_ids: Tokens without text.
      end_token_ids: Tokens that end a generation.
      bos_token_id: BOS token, if there is one.
    """

    tokens: Sequence[bytes]
    special_token_ids: Sequence[int]
    end_token_ids: Sequence[int]
    bos_token_id: int | None

    def to_bytes(self) -> bytes:
        """Returns the serialised vocabulary."""
        names = [self.special_token_ids, self.end_token_ids, self.bos_token_id]
        head = json.dumps([*names, list(map(len, self.tokens))]).encode()
        body = b"".join(self.tokens)
        return _LENGTHS.pack(len(head), len(body)) + head + body

    @classmethod
    def from_bytes(cls, data: bytes) -> "Vocabulary":
        """Returns the vocabulary that `to_bytes` has serialised."""
        head_size, _ = _LENGTHS.unpack_from(data)
        start = _LENGTHS.size + head_size
        special, ends, bos, lengths = json.loads(data[_LENGTHS.size : start])
        return cls(list(_split(data, start, lengths)), special, ends, bos)


def _split(data: bytes, start: int, lengths: Sequence[int]) -> Iterator[bytes]:
    for length in lengths:
        yield data[start : start + length]
        start += length
