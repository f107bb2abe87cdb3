"""A tokenizer's vocabulary for llguidance: the bytes of every token, and the tokens without text."""

from collections.abc import Sequence
from typing import Final

from ...text.tokenizer import Tokenizer
from ..grammar_worker.vocabulary import Vocabulary
from .spec import GrammarError

_ALL_BYTES: Final = frozenset(bytes([byte]) for byte in range(256))


class TokenBytes:
    """Bytes of a model's tokens, for its grammars.

    Args:
      tokenizer: Tokenizer of the model.
      end_token_ids: All tokens that end a generation; they are allowed only where a grammar may end.

    Raises:
      GrammarError: The tokens cannot spell every text, or no token ends a generation.
    """

    def __init__(self, tokenizer: Tokenizer, end_token_ids: Sequence[int]) -> None:
        if not tokenizer.has_text:
            raise GrammarError(
                "this checkpoint has no tokenizer, so its tokens have no text that a grammar could constrain"
            )
        if not end_token_ids:
            raise GrammarError("this checkpoint names no token that ends a generation")
        ends, ids = frozenset(end_token_ids), range(tokenizer.vocab_size)
        special_token_ids = [token_id for token_id in ids if tokenizer.is_control(token_id) or token_id in ends]
        special = frozenset(special_token_ids)
        tokens = [
            tokenizer.token_text(token_id).encode() if token_id in special else tokenizer.token_bytes(token_id)
            for token_id in ids
        ]
        if not _ALL_BYTES.issubset(tokens):
            raise GrammarError("this checkpoint's tokenizer has no token for some bytes, so it cannot spell every text")
        self.vocabulary = Vocabulary(tokens, special_token_ids, list(end_token_ids), tokenizer.bos_id)
        self._tokenizer = tokenizer
        self._ids = {tokens[token_id]: token_id for token_id in ids if token_id not in special}
        self._longest = max(map(len, self._ids))

    def token_ids(self, text: bytes) -> list[int]:
        """Returns the token ids of a text from the tokenizer, or by the longest match if their bytes are not the
        text's.

        The library requires tokens with exactly the text's bytes, which a dummy prefix or a normalizer would change.
        """
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
