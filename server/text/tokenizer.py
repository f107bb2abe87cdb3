"""Tokenizers: text to token ids and back.

Those of checkpoints are of the SentencePiece family, with `▁` for a space, byte pieces and control tokens.
"""

import itertools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sentencepiece
import tokenizers

from ...engine.types.errors import CheckpointError

END_OF_TURN: Final = "<end_of_turn>"
"""Control token that ends a turn of a chat."""

START_OF_TURN: Final = "<start_of_turn>"
"""Control token that starts a turn of a chat."""


class TextUnavailableError(ValueError):
    """A request has text, but the checkpoint has no tokenizer."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
      vocab_size: Size of the model's vocabulary. Ids beyond the tokenizer's pieces have no text.
      bos_id: Token that starts every prompt; `encode` does not add it. None if there is none.
      end_token_ids: Default end tokens: `<eos>`, then `<end_of_turn>` if it exists.
      has_text: Whether tokens have text; False only for `TokenIdsOnly`.
      max_token_bytes: Length of the longest `token_text` in UTF-8.
    """

    vocab_size: int
    bos_id: int | None
    end_token_ids: tuple[int, ...]
    has_text: bool
    max_token_bytes: int

    @abstractmethod
    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        """Returns the token ids of a text, without BOS.

        Args:
          text: Text to encode.
          control_tokens: Whether names of control tokens in the text (`<end_of_turn>`) become those tokens. Otherwise
            they are plain text, and the result contains no control token.

        Raises:
          TextUnavailableError: The checkpoint has no tokenizer.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """Returns the UTF-8 bytes of a token, which may be a part of a character; empty for control tokens."""

    @abstractmethod
    def token_text(self, token_id: int) -> str:
        """Returns a printable name: the token's text, or the piece of a control token.

        Bytes that are not a whole character become `bytes:\\xe2`, ids without a piece `token_id:N`.
        """

    @abstractmethod
    def is_control(self, token_id: int) -> bool:
        """Returns whether a token is a control token without text, such as `<bos>` or `<end_of_turn>`."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text of tokens, without control tokens; invalid UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")


class TokenIdsOnly(Tokenizer):
    """Tokenizer of a checkpoint without one: ids have names, but no text."""

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


_CONTROL_PIECES: Final = frozenset({"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", START_OF_TURN, END_OF_TURN})
"""Pieces that are control tokens in every model that has them, even if the file declares another type."""

SPACE_MARK: Final = "▁"
_RUNS: Final = re.compile(f"({SPACE_MARK}+)")
BYTE_PIECES: Final = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Additions of `tokenizer_config.json` to the tokenizer's file.

    Attributes:
      control: Pieces of control tokens by id.
      bos: Piece of the BOS token.
      eos: Piece of the EOS token.
    """

    control: Mapping[int, str] = field(default_factory=dict)
    bos: str = "<bos>"
    eos: str = "<eos>"


class PieceTokenizer(Tokenizer):
    """Common part of tokenizers with pieces. A subclass encodes plain text with its library.

    Text survives a round trip if the tokenizer has byte pieces and does not normalize, like Gemma's. To that end a
    literal `▁` is encoded as bytes, since the libraries would read it as a space. Lone surrogates become `?`. A model
    with a dummy prefix (a space before a text) gets one for each fragment that its library encodes; `decode` does not
    remove it, since it looks like any other space.

    Args:
      vocab_size: Size of the model's vocabulary.
      pieces: Pieces by id; ids may be missing.
      control_ids: Control tokens in addition to `_CONTROL_PIECES`.
      bos_id: BOS token, if there is one.
      eos_id: EOS token, if there is one.

    Raises:
      ValueError: An id is outside of the model's vocabulary.
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
                "replace it by the tokenizer that the model was trained with"
            )
        well_known = {token_id for token_id, piece in pieces.items() if piece in _CONTROL_PIECES}
        self._control_names = {token_id: pieces[token_id] for token_id in {*well_known, *control_ids}}
        self._control_ids = {name: token_id for token_id, name in self._control_names.items()}
        # A tokenizer without byte pieces encodes unknown characters as <unk>.
        self._barred_from_text = self._control_names.keys() - {self._control_ids.get("<unk>")}
        self._bytes = [b""] * vocab_size
        for token_id, piece in pieces.items():
            if token_id not in self._control_names:
                self._bytes[token_id] = _piece_bytes(piece)
        names = (name.encode() for name in self._control_names.values())
        self.max_token_bytes = max(map(len, itertools.chain(self._bytes, names, [b"token_id:000000"])))
        self._space_mark_ids = _byte_piece_ids(pieces, SPACE_MARK.encode())

        any_name = "|".join(map(re.escape, sorted(self._control_ids, key=len, reverse=True))) or "(?!)"
        self._names = re.compile(f"({any_name})")
        self._name_starts = re.compile(f"(?={any_name})")

        self.vocab_size = vocab_size
        self.bos_id = bos_id
        end_ids = (eos_id, self._control_ids.get(END_OF_TURN))
        self.end_token_ids = tuple(token_id for token_id in end_ids if token_id is not None)

    @abstractmethod
    def _library_encode(self, text: str) -> list[int]:
        """Returns the token ids of a text according to the tokenizer's library, without BOS or a template."""

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
            if part.startswith(SPACE_MARK):
                ids += (self._space_mark_ids or self._library_encode(SPACE_MARK)) * len(part)
            else:
                ids += self._library_encode(part)
        # A normalizer may turn other characters into a control token's name: `＜eos＞`.
        return [token_id for token_id in ids if token_id not in self._barred_from_text]

    def _fragments(self, text: str) -> Iterator[str]:
        """Splits a text into fragments without names of control tokens; each run of `▁` is a fragment.

        The libraries find these names in any text. A split after the first character of every occurrence, including
        overlapping ones, leaves no name complete.
        """
        # A search for each name takes a hundredth of the time of the expression.
        has_names = bool([name for name in self._control_ids if name in text])
        for part in _RUNS.split(text):
            cuts = [match.start() + 1 for match in self._name_starts.finditer(part)] if has_names else []
            for start, end in itertools.pairwise([0, *cuts, len(part)]):
                yield part[start:end]


class SentencePieceTokenizer(PieceTokenizer):
    """Tokenizer of a `tokenizer.model` file.

    User-defined pieces are text (runs of newlines, `<table>`), except the well-known control tokens and pieces that
    `config` declares.

    Args:
      model: Content of the file.
      vocab_size: Size of the model's vocabulary.
      config: Additions of `tokenizer_config.json`.

    Raises:
      ValueError: The content is not a SentencePiece model, or does not fit the vocabulary.
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
        return self._processor.encode(text, return_type=int)


class HFTokenizer(PieceTokenizer):
    """Tokenizer of a `tokenizer.json` file that was converted from a SentencePiece model.

    Args:
      data: Content of the file.
      vocab_size: Size of the model's vocabulary.
      config: Additions of `tokenizer_config.json`.

    Raises:
      ValueError: The content is not such a tokenizer, or does not fit the vocabulary.
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


def _piece_bytes(piece: str) -> bytes:
    return BYTE_PIECES.get(piece) or piece.replace(SPACE_MARK, " ").encode()


def _byte_piece_ids(pieces: Mapping[int, str], data: bytes) -> list[int]:
    """Returns the ids of the byte pieces of `data`; empty if one of them is missing."""
    ids = {piece: token_id for token_id, piece in pieces.items() if piece in BYTE_PIECES}
    names = [f"<0x{byte:02X}>" for byte in data]
    return [ids[name] for name in names] if ids.keys() >= set(names) else []


def _none_if_negative(token_id: int) -> int | None:
    return None if token_id < 0 else token_id


def _sentencepiece_processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    if not model:  # the library accepts an empty model
        raise ValueError("is empty: download it again, or remove it to serve token ids")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        message = "is not a SentencePiece model: download it again, or remove it to serve token ids"
        raise ValueError(message) from error


def _hf_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
        tokenizer.encode("a\U0010fffd")  # a wrong unknown token raises only for unknown text
    except Exception as error:  # the library raises no narrower class
        message = "is not a tokenizer of the tokenizers library: download it again, or remove it to serve token ids"
        raise ValueError(message) from error
    if isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel):
        raise ValueError("has byte-level pieces, as GPT-2; only SentencePiece's kind is supported")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """Returns the tokenizer of `tokenizer.model` or `tokenizer.json`, in this order; a `TokenIdsOnly` without either.

    Args:
      directory: Folder of the checkpoint.
      vocab_size: Size of the model's vocabulary.

    Raises:
      CheckpointError: A file is broken or does not fit the model's vocabulary.
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


def read_object(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file of a checkpoint; an empty one if the file does not exist.

    Raises:
      CheckpointError: The file does not contain a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object; download it again")
    return content


def _load_tokenizer_config(directory: Path) -> TokenizerConfig:
    path = directory / "tokenizer_config.json"
    content = read_object(path)
    declared = content.get("added_tokens_decoder") or {}
    try:
        control = {int(token_id): token["content"] for token_id, token in declared.items() if token["special"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: added_tokens_decoder is malformed; download it again") from error
    bos, eos = _token_name(content.get("bos_token")), _token_name(content.get("eos_token"))
    return TokenizerConfig(control, bos or "<bos>", eos or "<eos>")


def _token_name(value: Any) -> str | None:
    """Returns the name of a token in tokenizer_config.json, which is a string or an object with `content`."""
    return value.get("content") if isinstance(value, dict) else value
