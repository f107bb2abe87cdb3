"""A model's vocabulary as a tokenizer for llguidance."""

from collections.abc import Callable
from typing import Final

from llguidance import LLTokenizer, TokenizerWrapper

from .vocabulary import Vocabulary

MAX_FORCED_BYTES: Final = 256
"""Maximum bytes of a forced text that the model's tokenizer encodes.

The library tokenizes the whole text again for each token and uses the first id only, so a long constant would take
seconds.
"""


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
