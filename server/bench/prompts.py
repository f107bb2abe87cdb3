"""Prompts that mean nothing. What a model reads makes no difference to its speed."""

import random
from collections.abc import Sequence
from typing import Final

FIRST_ID: Final = 4
"""Below it vocabularies keep their marks for padding, beginnings and ends."""

_WORDS: Final = (
    *("the", "of", "and", "to", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as"),
    *("his", "they", "at", "be", "this", "from", "have", "or", "by", "one", "had", "not", "but", "what", "all"),
    *("were", "when", "we", "there", "can", "an", "your", "which", "their", "said", "if", "do", "will", "each"),
)


def draw_token_ids(length: int, vocab_size: int, chance: random.Random) -> Sequence[int]:
    """Ids from `FIRST_ID` up to the size of the vocabulary, if that is large enough to have any."""
    first = min(FIRST_ID, vocab_size - 1)
    return chance.choices(range(first, vocab_size), k=length)


def draw_text(num_words: int, chance: random.Random) -> str:
    """Common words, most of which are one token each in most vocabularies."""
    return " ".join(chance.choices(_WORDS, k=num_words))
