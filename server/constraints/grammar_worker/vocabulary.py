"""Vocabulary of a model: serialised for a pipe, and as a tokenizer for llguidance."""

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llguidance import LLTokenizer, TokenizerWrapper

_LENGTHS: Final = struct.Struct("<II")

SIZE_BYTES: Final = 8
"""Bytes of the length that precedes a serialised vocabulary."""

MAX_FORCED_BYTES: Final = 256
"""Maximum bytes of a forced text that the model's tokenizer encodes.

The library tokenizes the whole text again for each token and uses the first id only, so a long constant would take
seconds.
"""


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


class WorkerTokenizer:
    """Tokenizer that llguidance calls.

    Args:
      vocabulary: Tokens of the model.

    Attributes:
      tokenize: Requests the token ids of a text from the server; None before the connection exists.
      library: Tokenizer of the library.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokenize: Callable[[bytes], list[int]] | None = None
        wrapper = TokenizerWrapper(_Names(vocabulary, self._ids))
        self.library = LLTokenizer(wrapper, n_vocab=len(vocabulary.tokens), eos_token=list(vocabulary.end_token_ids))

    def _ids(self, text: bytes) -> list[int]:
        if self.tokenize is None:
            return []
        cut = min(len(text), MAX_FORCED_BYTES)
        while cut < len(text) and text[cut] & 0xC0 == 0x80:  # never inside of a character
            cut -= 1
        rest = self.library.greedy_tokenize(text[cut:].decode()) if cut < len(text) else []
        return self.tokenize(text[:cut]) + rest


class _Names:
    """Vocabulary with the attribute names that llguidance reads."""

    def __init__(self, vocabulary: Vocabulary, ids: Callable[[bytes], list[int]]) -> None:
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_token_ids
        self.eos_token_id = vocabulary.end_token_ids[0]
        self.bos_token_id = vocabulary.bos_token_id
        self._ids = ids

    def __call__(self, text: bytes) -> list[int]:
        return self._ids(text)


def _split(data: bytes, start: int, lengths: Sequence[int]) -> Iterator[bytes]:
    for length in lengths:
        yield data[start : start + length]
        start += length
