"""Interface of tokenizers: text to token ids and back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

END_OF_TURN: Final = "<end_of_turn>"
START_OF_TURN: Final = "<start_of_turn>"


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
