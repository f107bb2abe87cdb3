"""Interface of tokenizers: text to token ids and back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

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
