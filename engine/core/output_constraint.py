"""Tokens that may come next, decided on the host: by constraints, which follow a sequence, or by one mask for all."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np

type TokenMask = np.ndarray[Any, np.dtype[np.uint32]]
"""A bit per token of the vocabulary: token i is allowed where bit i % 32 of word i // 32 is set."""

ALL_ALLOWED: Final = 0xFFFFFFFF
"""A word of a mask whose 32 tokens may all come."""

_LITTLE_ENDIAN: Final = np.dtype("<u4")


@runtime_checkable
class Constraint(Protocol):
    """Follows one sequence token by token. It belongs to its request, and from there on to the engine's thread.

    What it raises ends that request with an error, and nobody else's.
    """

    def fill_mask(self, mask: TokenMask) -> None:
        """Sets all words of the mask to what may come next. At least one token must be allowed."""

    def is_ready(self, wait_s: float) -> bool:
        """Whether `fill_mask` would return at once; waits up to so many seconds for that. Until then only its own
        request waits."""

    def advance(self, token_id: int) -> None:
        """Takes note of the token that came."""


def words_of_mask(vocab_size: int) -> int:
    """Words of a `TokenMask`."""
    return -(-vocab_size // 32)


def mask_of_ids(ids: Iterable[int], words: int) -> TokenMask:
    """The mask that allows these tokens and no others."""
    is_allowed = np.zeros(32 * words, np.bool)
    is_allowed[np.fromiter(ids, np.int64)] = True
    return np.packbits(is_allowed, bitorder="little").view(_LITTLE_ENDIAN).astype(np.uint32, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class StaticMask:
    """A mask that holds for all of a request, made once, for a vocabulary of any size.

    Attributes:
      words: for the ids up to the largest one that the request names.
      allows_others: whether ids behind those are allowed.
    """

    words: TokenMask
    allows_others: bool

    @classmethod
    def of(cls, allowed: Collection[int] | None, banned: Collection[int]) -> "StaticMask | None":
        """Returns the mask of the allowed ids, where None stands for all, without the banned ones.

        Returns:
          None where every token is allowed.
        """
        if allowed is None and not banned:
            return None
        words = words_of_mask(1 + max(max(allowed or (0,)), max(banned, default=0)))
        mask = np.full(words, ALL_ALLOWED, np.uint32) if allowed is None else mask_of_ids(allowed, words)
        return cls(mask & ~mask_of_ids(banned, words), allows_others=allowed is None)

    def is_empty(self, banned: Collection[int] = ()) -> bool:
        """Returns whether no token is left without the banned ones, whatever the vocabulary."""
        words = len(self.words)
        return not self.allows_others and not np.any(
            self.words & ~mask_of_ids((i for i in banned if i < 32 * words), words)
        )

    def narrow(self, mask: TokenMask) -> None:
        """Bans the same tokens in another mask."""
        count = min(len(mask), len(self.words))
        mask[:count] &= self.words[:count]
        if not self.allows_others:
            mask[count:] = 0

    def mask(self, words: int) -> TokenMask:
        """Returns the mask with this number of words."""
        mask = np.full(words, ALL_ALLOWED, np.uint32)
        self.narrow(mask)
        return mask
