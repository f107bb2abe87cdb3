"""A tokenizer for models with random weights.

Its SentencePiece model is written field by field, with the field numbers of sentencepiece_model.proto: sentencepiece
has no way to build a model from pieces, and its generated module needs a protobuf runtime that it does not install.
"""

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from .tokenizer import (
    BYTE_PIECES,
    END_OF_TURN,
    SPACE_MARK,
    START_OF_TURN,
    SentencePieceTokenizer,
    TokenIdsOnly,
    Tokenizer,
)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

_SPECIAL_PIECES: Final = (("<pad>", _CONTROL), ("<eos>", _CONTROL), ("<bos>", _CONTROL), ("<unk>", _UNKNOWN))
_TURN_PIECES: Final = ((START_OF_TURN, _USER_DEFINED), (END_OF_TURN, _USER_DEFINED), ("\n", _USER_DEFINED))


def synthetic_tokenizer(vocab_size: int) -> Tokenizer:
    """Returns a tokenizer of bytes, letters and made-up words, which depends on the size only.

    Every id has a piece, and any text survives a round trip. Control tokens have Gemma's ids; so do the turn marks and
    the newline (106 to 108), or 4 to 6 if there are fewer than 512 ids. Fewer than 300 ids are too few for bytes and
    letters and give a `TokenIdsOnly`.
    """
    if vocab_size < 300:
        return TokenIdsOnly(vocab_size)
    num_before_marks = 106 - len(_SPECIAL_PIECES) if vocab_size >= 512 else 0
    plain = _synthetic_pieces()
    pieces = [
        *_SPECIAL_PIECES,
        *itertools.islice(plain, num_before_marks),
        *_TURN_PIECES,
        *itertools.islice(plain, vocab_size - len(_SPECIAL_PIECES) - num_before_marks - len(_TURN_PIECES)),
    ]
    return SentencePieceTokenizer(_sentencepiece_model(pieces), vocab_size)


def _synthetic_pieces() -> Iterator[tuple[str, int]]:
    """Yields letters and digits, bytes, capitals and punctuation, then words of one syllable, of two, and so on."""
    letters, rest = "abcdefghijklmnopqrstuvwxyz0123456789▁", "ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'\"-:;()"
    yield from ((char, _NORMAL) for char in letters)
    yield from ((piece, _BYTE) for piece in BYTE_PIECES)
    yield from ((char, _NORMAL) for char in rest)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
    for length in itertools.count(1):
        for word in map("".join, itertools.product(syllables, repeat=length)):
            yield word, _NORMAL
            yield SPACE_MARK + word, _NORMAL


def _sentencepiece_model(pieces: Sequence[tuple[str, int]]) -> bytes:
    """Returns a ModelProto: BPE with byte fallback and no normalization; earlier pieces are merged first."""
    trainer = b"".join(
        (
            _number_field(3, 2),  # model_type: BPE
            _number_field(4, len(pieces)),
            _number_field(35, 1),  # byte_fallback
            *(_number_field(number, value) for number, value in ((40, 3), (41, 2), (42, 1), (43, 0))),
            *(_bytes_field(45 + i, name) for i, name in enumerate((b"<unk>", b"<bos>", b"<eos>", b"<pad>"))),
        )
    )
    # No dummy prefix, no removal of extra spaces; spaces become `▁`.
    normalizer = _bytes_field(1, b"identity") + _number_field(3, 0) + _number_field(4, 0) + _number_field(5, 1)
    entries = (_bytes_field(1, _piece_entry(*piece, rank)) for rank, piece in enumerate(pieces))
    return b"".join(entries) + _bytes_field(2, trainer) + _bytes_field(3, normalizer)


def _piece_entry(piece: str, kind: int, rank: int) -> bytes:
    return _bytes_field(1, piece.encode()) + b"\x15" + struct.pack("<f", -rank) + _number_field(3, kind)


def _bytes_field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    high, low = divmod(value, 128)
    return bytes([low | 128]) + _varint(high) if high else bytes([low])
