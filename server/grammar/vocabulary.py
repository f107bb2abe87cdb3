"""A tokenizer as llguidance wants it: the bytes of every token, and which tokens are no text."""

from collections.abc import Sequence
from typing import Final

from llguidance import LLTokenizer, TokenizerWrapper

from ..tokenizer import Tokenizer
from .spec import GrammarError

_ALL_BYTES: Final = frozenset(bytes([byte]) for byte in range(256))


def llguidance_tokenizer(tokenizer: Tokenizer, end_token_ids: Sequence[int]) -> LLTokenizer:
    """
    Args:
      end_token_ids: all that end an answer; they are allowed where a grammar may end, and only there.

    Raises:
      GrammarError: with these tokens, not every text can be written or no answer ended.
    """
    if not tokenizer.has_text:
        raise GrammarError("this checkpoint has no tokenizer, so its tokens have no text that a grammar could speak of")
    if not end_token_ids:
        raise GrammarError("this checkpoint names no token that ends an answer")
    vocabulary = _Vocabulary(tokenizer, end_token_ids)
    if not _ALL_BYTES.issubset(vocabulary.tokens):
        raise GrammarError("this checkpoint's tokenizer has no token for some bytes, so it cannot write every text")
    return LLTokenizer(TokenizerWrapper(vocabulary), n_vocab=tokenizer.vocab_size, eos_token=list(end_token_ids))


class _Vocabulary:
    """The names are the library's. Called with a text, it gives the tokens that the model would expect for it."""

    def __init__(self, tokenizer: Tokenizer, end_token_ids: Sequence[int]) -> None:
        ends = frozenset(end_token_ids)
        ids = range(tokenizer.vocab_size)
        self._tokenizer = tokenizer
        self.eos_token_id = end_token_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = [token_id for token_id in ids if tokenizer.is_control(token_id) or token_id in ends]
        special = frozenset(self.special_token_ids)
        self.tokens = [
            tokenizer.token_text(token_id).encode() if token_id in special else tokenizer.token_bytes(token_id)
            for token_id in ids
        ]
        self._ids = {self.tokens[token_id]: token_id for token_id in ids if token_id not in special}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        """The library counts on getting the text's own bytes, which a dummy prefix or a normalizer would change."""
        token_ids = self._tokenizer.encode(text.decode(), control_tokens=False)
        if b"".join(map(self._tokenizer.token_bytes, token_ids)) == text:
            return token_ids
        return self._longest_first(text)

    def _longest_first(self, text: bytes) -> list[int]:
        token_ids, start = [], 0
        while start < len(text):
            ends = range(min(start + self._longest, len(text)), start, -1)
            end = next(end for end in ends if text[start:end] in self._ids)
            token_ids.append(self._ids[text[start:end]])
            start = end
        return token_ids
