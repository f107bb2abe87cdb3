"""Text to token ids and back, for the SentencePiece family: `▁` for a space, byte pieces, control tokens."""

import itertools
import json
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sentencepiece
import tokenizers

from ...engine.core.errors import CheckpointError

END_OF_TURN: Final = "<end_of_turn>"
START_OF_TURN: Final = "<start_of_turn>"

_CONTROL_PIECES: Final = frozenset({"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", START_OF_TURN, END_OF_TURN})
"""Pieces that are control tokens in every model that has them, whatever type its file gives them."""

_SPACE_MARK: Final = "▁"
_BYTE_PIECES: Final = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


class TextUnavailableError(ValueError):
    """Text was given to a checkpoint without a tokenizer."""


class Tokenizer(ABC):
    """
    Attributes:
      vocab_size: the model's; ids are below it. Where a tokenizer has fewer pieces, the rest has no text.
      bos_id: the token that begins every prompt; `encode` does not add it.
      end_token_ids: every default end token: `<eos>` first, and `<end_of_turn>` where it exists.
      has_text: whether there is any text at all; False only for `TokenIdsOnly`.
      max_token_bytes: length of the longest name that `token_text` gives, in UTF-8.
    """

    vocab_size: int
    bos_id: int | None
    end_token_ids: tuple[int, ...]
    has_text: bool
    max_token_bytes: int

    @abstractmethod
    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        """Turns text into ids, without BOS.

        With `control_tokens`, the names of control tokens inside the text (`<end_of_turn>`) become those
        tokens; without, they are plain text, and no control token comes out.

        Raises:
          TextUnavailableError: there is no tokenizer.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that the token adds to a text, maybe half a character; none for control tokens."""

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """A printable name: the text, or a control token's piece.

        Bytes that are no character by themselves are written `bytes:\\xe2`, ids without a piece `token_id:N`.
        """

    @abstractmethod
    def is_control(self, token_id: int) -> bool:
        """Whether the token steers the model and is no text: `<bos>`, `<end_of_turn>`."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The tokens' bytes as text. Control tokens are left out; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")


class TokenIdsOnly(Tokenizer):
    """Stands in where a checkpoint brings no tokenizer: ids have names, but no text."""

    has_text = False

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.bos_id = None
        self.end_token_ids = ()
        self.max_token_bytes = len(self.token_text(vocab_size))

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        raise TextUnavailableError("this checkpoint has no tokenizer: send the prompt as token ids")

    def token_bytes(self, token_id: int) -> bytes:
        return b""

    def token_text(self, token_id: int) -> str:
        return f"token_id:{token_id}"

    def is_control(self, token_id: int) -> bool:
        return False


class _PieceTokenizer(Tokenizer):
    """What `tokenizer.model` and `tokenizer.json` have in common; a subclass turns plain text into ids.

    Text survives a round trip where the tokenizer has byte pieces and does not normalize, as Gemma's. For
    that, a literal `▁` is encoded by its bytes: the libraries would take it for a space. Lone surrogates
    become `?`. A model that asks for a dummy prefix (a space in front of a text) gets it, once for each
    fragment that its library encodes, and `decode` does not take it off: it cannot tell it from a space.

    Args:
      pieces: by id; ids may be missing.
      control_ids: which of them are control tokens, further to `_CONTROL_PIECES`.

    Raises:
      ValueError: an id is outside the model's vocabulary.
    """

    has_text = True

    def __init__(
        self,
        vocab_size: int,
        pieces: Mapping[int, str],
        control_ids: Iterable[int],
        bos_id: int | None,
        eos_id: int | None,
    ) -> None:
        if (num_pieces := max(pieces, default=-1) + 1) > vocab_size:
            raise ValueError(
                f"has {num_pieces} pieces, but the model's vocabulary only {vocab_size}: "
                "put the tokenizer here that the model was trained with"
            )
        well_known = {token_id for token_id, piece in pieces.items() if piece in _CONTROL_PIECES}
        self._control_names = {token_id: pieces[token_id] for token_id in {*well_known, *control_ids}}
        self._control_ids = {name: token_id for token_id, name in self._control_names.items()}
        # A tokenizer without byte pieces has nothing but <unk> for a character that it does not know.
        self._barred_from_text = self._control_names.keys() - {self._control_ids.get("<unk>")}
        self._bytes = [b""] * vocab_size
        for token_id, piece in pieces.items():
            if token_id not in self._control_names:
                self._bytes[token_id] = _piece_bytes(piece)
        names = (name.encode() for name in self._control_names.values())
        self.max_token_bytes = max(map(len, itertools.chain(self._bytes, names, [b"token_id:000000"])))
        self._space_mark_ids = _byte_piece_ids(pieces, _SPACE_MARK.encode())

        any_name = "|".join(map(re.escape, sorted(self._control_ids, key=len, reverse=True))) or "(?!)"
        self._names = re.compile(f"({any_name})")
        self._name_starts = re.compile(f"(?={any_name})")

        self.vocab_size = vocab_size
        self.bos_id = bos_id
        end_ids = (eos_id, self._control_ids.get(END_OF_TURN))
        self.end_token_ids = tuple(token_id for token_id in end_ids if token_id is not None)

    @abstractmethod
    def _library_encode(self, text: str) -> list[int]:
        """Ids of a text as the tokenizer's own library gives them, without BOS or a template."""

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        text = text.encode("utf-8", "replace").decode("utf-8")
        if not control_tokens:
            return self._encode_plain(text)
        ids: list[int] = []
        for part in self._names.split(text):
            if part in self._control_ids:
                ids.append(self._control_ids[part])
            else:
                ids += self._encode_plain(part)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        if token_id in self._control_names:
            return self._control_names[token_id]
        data = self._bytes[token_id]
        if not data:
            return f"token_id:{token_id}"
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def is_control(self, token_id: int) -> bool:
        return token_id in self._control_names

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._fragments(text):
            if part.startswith(_SPACE_MARK):
                ids += (self._space_mark_ids or self._library_encode(_SPACE_MARK)) * len(part)
            else:
                ids += self._library_encode(part)
        # A normalizer may have made a control token's name of other characters: `＜eos＞`.
        return [token_id for token_id in ids if token_id not in self._barred_from_text]

    def _fragments(self, text: str) -> Iterator[str]:
        """Cuts a text such that no fragment holds a control token's name, and each run of `▁` is one of its own.

        The libraries find the names in any text. One cut behind the first character of every occurrence,
        overlapping ones too, leaves none whole.
        """
        for part in re.split(f"({_SPACE_MARK}+)", text):
            cuts = [match.start() + 1 for match in self._name_starts.finditer(part)]
            yield from (part[start:end] for start, end in itertools.pairwise([0, *cuts, len(part)]))


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """What `tokenizer_config.json` adds to the tokenizer's file: control tokens by id, names of BOS and EOS."""

    control: Mapping[int, str] = field(default_factory=dict)
    bos: str = "<bos>"
    eos: str = "<eos>"


class SentencePieceTokenizer(_PieceTokenizer):
    """A `tokenizer.model`.

    Its user-defined pieces are text (runs of newlines, `<table>`), apart from the well-known control tokens
    and those that `config` declares.

    Raises:
      ValueError: this is no SentencePiece model, or it does not fit the vocabulary.
    """

    def __init__(self, model: bytes, vocab_size: int, config: TokenizerConfig | None = None) -> None:
        self._processor = _sentencepiece_processor(model)
        ids = list(range(self._processor.get_piece_size()))
        declared = dict(config.control) if config else {}
        control = itertools.compress(ids, self._processor.is_control(ids))
        super().__init__(
            vocab_size,
            pieces=dict(enumerate(self._processor.id_to_piece(ids))) | declared,
            control_ids={self._processor.unk_id(), *control, *declared},
            bos_id=_none_if_negative(self._processor.bos_id()),
            eos_id=_none_if_negative(self._processor.eos_id()),
        )

    def _library_encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text, return_type=int)
        return ids


class HFTokenizer(_PieceTokenizer):
    """A `tokenizer.json` that was made from a SentencePiece model.

    Raises:
      ValueError: this is no such file, or it does not fit the vocabulary.
    """

    def __init__(self, data: bytes, vocab_size: int, config: TokenizerConfig | None = None) -> None:
        config = config or TokenizerConfig()
        self._tokenizer = _hf_tokenizer(data)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        super().__init__(
            vocab_size,
            pieces={token_id: piece for piece, token_id in vocabulary.items()} | dict(config.control),
            control_ids={*special, *config.control},
            bos_id=vocabulary.get(config.bos),
            eos_id=vocabulary.get(config.eos),
        )

    def _library_encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """Loads a checkpoint's `tokenizer.model`, else its `tokenizer.json`, else a `TokenIdsOnly`.

    Raises:
      CheckpointError: a file is broken or does not fit the model's vocabulary.
    """
    config = _load_tokenizer_config(directory)
    kinds = (("tokenizer.model", SentencePieceTokenizer), ("tokenizer.json", HFTokenizer))
    for name, kind in kinds:
        if (path := directory / name).is_file():
            try:
                return kind(path.read_bytes(), vocab_size, config)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
            except ValueError as error:
                raise CheckpointError(f"{path} {error}") from error
    return TokenIdsOnly(vocab_size)


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; empty if there is no such file.

    Raises:
      CheckpointError: the file holds no JSON object.
    """
    path = directory / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object; download it again")
    return content


def synthetic_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer for random weights, the same for the same size: bytes, letters and made-up words.

    Every id has a piece, and any text survives a round trip. Control tokens have Gemma's ids, and the turn
    marks and the newline have 106 to 108 too; 4 to 6 where there are fewer than 512 ids. Fewer than 300 are
    too few for bytes and letters and give a `TokenIdsOnly`.
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


def _piece_bytes(piece: str) -> bytes:
    return _BYTE_PIECES.get(piece) or piece.replace(_SPACE_MARK, " ").encode()


def _byte_piece_ids(pieces: Mapping[int, str], data: bytes) -> list[int]:
    """The ids of the byte pieces that spell `data`; empty if one of them is missing."""
    ids = {piece: token_id for token_id, piece in pieces.items() if piece in _BYTE_PIECES}
    names = [f"<0x{byte:02X}>" for byte in data]
    return [ids[name] for name in names] if ids.keys() >= set(names) else []


def _none_if_negative(token_id: int) -> int | None:
    return None if token_id < 0 else token_id


def _sentencepiece_processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    if not model:  # the library takes it
        raise ValueError("is empty: download it again, or remove it to serve token ids")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        message = "is no SentencePiece model: download it again, or remove it to serve token ids"
        raise ValueError(message) from error


def _hf_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
        tokenizer.encode("a\U0010fffd")  # an unknown token that is none shows only where something is unknown
    except Exception as error:  # the library raises nothing more special
        message = "is no tokenizer of the tokenizers library: download it again, or remove it to serve token ids"
        raise ValueError(message) from error
    if isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel):
        raise ValueError("has byte-level pieces, as GPT-2; only SentencePiece's kind is supported")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load_tokenizer_config(directory: Path) -> TokenizerConfig:
    content = read_tokenizer_config(directory)
    declared = content.get("added_tokens_decoder") or {}
    try:
        control = {int(token_id): token["content"] for token_id, token in declared.items() if token["special"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        path = directory / "tokenizer_config.json"
        raise CheckpointError(f"{path}: added_tokens_decoder is malformed; download it again") from error
    bos, eos = _token_name(content.get("bos_token")), _token_name(content.get("eos_token"))
    return TokenizerConfig(control, bos or "<bos>", eos or "<eos>")


def _token_name(value: Any) -> str | None:
    """A token in tokenizer_config.json is its name, or an object that holds it."""
    return value.get("content") if isinstance(value, dict) else value


# The synthetic tokenizer's SentencePiece model. It is written field by field (the numbers are those of
# sentencepiece_model.proto), as its few fields are no reason to depend on protobuf.

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

_SPECIAL_PIECES: Final = (("<pad>", _CONTROL), ("<eos>", _CONTROL), ("<bos>", _CONTROL), ("<unk>", _UNKNOWN))
_TURN_PIECES: Final = ((START_OF_TURN, _USER_DEFINED), (END_OF_TURN, _USER_DEFINED), ("\n", _USER_DEFINED))


def _synthetic_pieces() -> Iterator[tuple[str, int]]:
    """Letters and digits, all bytes, capitals and marks, then words of one syllable, of two, and so on."""
    letters, rest = "abcdefghijklmnopqrstuvwxyz0123456789▁", "ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'\"-:;()"
    yield from ((char, _NORMAL) for char in letters)
    yield from ((piece, _BYTE) for piece in _BYTE_PIECES)
    yield from ((char, _NORMAL) for char in rest)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
    for length in itertools.count(1):
        for word in map("".join, itertools.product(syllables, repeat=length)):
            yield word, _NORMAL
            yield _SPACE_MARK + word, _NORMAL


def _sentencepiece_model(pieces: Sequence[tuple[str, int]]) -> bytes:
    """A ModelProto: BPE with byte fallback, no normalization; the earlier piece is merged first."""
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
