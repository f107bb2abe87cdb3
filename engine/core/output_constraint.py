"""Output constraints and token masks: which tokens may come next, decided on the host."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

type TokenMask = np.ndarray[Any, np.dtype[np.uint32]]
"""One bit per token of the vocabulary: token i is allowed if bit i % 32 of word i // 32 is set."""

ALL_ALLOWED: Final = 0xFFFFFFFF
"""Word of a mask that allows all of its 32 tokens."""

_LITTLE_ENDIAN: Final = np.dtype("<u4")


@runtime_checkable
class Constraint(Protocol):
    """Follows the tokens of one request, and decides which may come next. Only the engine's thread calls it.

    An exception from any method ends the request with an error; other requests are not affected.
    """

    def fill_mask(self, mask: TokenMask) -> None:
        """Writes all words of the mask of the next token, which must allow at least one."""

    def is_ready(self, wait_s: float) -> bool:
        """Returns whether `fill_mask` would return at once. Until then, the request sits out.

        Args:
          wait_s: Maximum number of seconds to wait for that.
        """

    def advance(self, token_id: int) -> None:
        """Moves on by one generated token."""


def words_of_mask(vocab_size: int) -> int:
    """Returns the number of words of a `TokenMask`."""
    return -(-vocab_size // 32)


def mask_of_ids(ids: Iterable[int], words: int) -> TokenMask:
    """Returns the mask that allows these tokens and no others.

    Args:
      ids: Token ids below `32 * words`.
      words: Number of words of the mask.
    """
    is_allowed = np.zeros(32 * words, np.bool)
    is_allowed[np.fromiter(ids, np.int64)] = True
    return np.packbits(is_allowed, bitorder="little").view(_LITTLE_ENDIAN).astype(np.uint32, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class StaticMask:
    """Mask that is the same for all tokens of a request, whatever the size of the vocabulary.

    Attributes:
      words: Mask of the ids up to the largest one that the request names.
      allows_others: Whether larger ids are allowed.
    """

    words: TokenMask
    allows_others: bool

    @classmethod
    def of(cls, allowed: Collection[int] | None, banned: Collection[int]) -> "StaticMask | None":
        """Returns the mask of the allowed ids without the banned ones; None if every token is allowed.

        Args:
          allowed: Allowed ids; None allows all.
          banned: Banned ids.
        """
        if allowed is None and not banned:
            return None
        words = words_of_mask(1 + max(max(allowed or (0,)), max(banned, default=0)))
        mask = np.full(words, ALL_ALLOWED, np.uint32) if allowed is None else mask_of_ids(allowed, words)
        return cls(mask & ~mask_of_ids(banned, words), allows_others=allowed is None)

    def is_empty(self, banned: Collection[int] = ()) -> bool:
        """Returns whether the mask allows no token besides the banned ones, whatever the size of the vocabulary."""
        words = len(self.words)
        return not self.allows_others and not np.any(
            self.words & ~mask_of_ids((i for i in banned if i < 32 * words), words)
        )

    def narrow(self, mask: TokenMask) -> None:
        """Bans the same tokens in another mask, in place."""
        count = min(len(mask), len(self.words))
        mask[:count] &= self.words[:count]
        if not self.allows_others:
            mask[count:] = 0

    def mask(self, words: int) -> TokenMask:
        """Returns the mask with this number of words."""
        mask = np.full(words, ALL_ALLOWED, np.uint32)
        self.narrow(mask)
        return mask
