"""What a sequence may say next, decided on the host: grammars, and words that must not come."""

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np

type TokenMask = np.ndarray[Any, np.dtype[np.uint32]]
"""A bit per token of the vocabulary: token i is allowed where bit i % 32 of word i // 32 is set."""


@runtime_checkable
class Constraint(Protocol):
    """Follows one sequence token by token. It belongs to its request, and from there on to the engine's thread.

    What it raises ends that request with an error, and nobody else's.
    """

    def fill_mask(self, mask: TokenMask) -> None:
        """Sets all words of the mask to what may come next. At least one token must be allowed."""

    def advance(self, token_id: int) -> None:
        """Takes note of the token that came."""


def words_of_mask(vocab_size: int) -> int:
    """Words of a `TokenMask`."""
    return -(-vocab_size // 32)


def mask_of_ids(ids: Iterable[int], words: int) -> TokenMask:
    """The mask that allows these tokens and no others."""
    index = np.fromiter(ids, np.int64)
    mask = np.zeros(words, np.uint32)
    np.bitwise_or.at(mask, index >> 5, np.uint32(1) << (index & 31).astype(np.uint32))
    return mask
