"""Output constraints, bad words and token masks: which tokens may come next, decided on the host."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

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
        """Returns whether `fill_mask` would return without waiting. Until then, the request is left out of steps.

        Args:
          wait_s: Maximum number of seconds to wait for that.
        """

    def advance(self, token_id: int) -> None:
        """Advances by one generated token."""


class Forced(NamedTuple):
    """Tokens that are each the only one allowed after the tokens before it.

    Attributes:
      token_ids: Next tokens.
      mask: Mask of the token after them.
    """

    token_ids: tuple[int, ...]
    mask: TokenMask

    def first(self, count: int) -> "Forced":
        """Returns the first tokens, `count` at most."""
        if len(self.token_ids) <= count:
            return self
        return Forced(self.token_ids[:count], mask_of_ids(self.token_ids[count : count + 1], len(self.mask)))


@runtime_checkable
class ForcingConstraint(Constraint, Protocol):
    """Constraint that looks ahead of the next token, so that speculation can draft forced tokens."""

    def forced(self) -> Forced:
        """Returns the next tokens that are known to be forced, possibly none. Called once `is_ready`."""


def words_of_mask(vocab_size: int) -> int:
    """Returns the number of words of a `TokenMask`."""
    return -(-vocab_size // 32)


def mask_of_ids(ids: Iterable[int], words: int) -> TokenMask:
    """Returns the mask that allows these tokens and no others.

    Args:
      ids: Token ids below `32 * words`.
    """
    is_allowed = np.zeros(32 * words, np.bool)
    is_allowed[np.fromiter(ids, np.int64)] = True
    return np.packbits(is_allowed, bitorder="little").view(_LITTLE_ENDIAN).astype(np.uint32, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class StaticMask:
    """Mask that is the same for all tokens of a request, independent of the size of the vocabulary.

    Attributes:
      words: Mask of the ids up to the largest one that the request names.
      allows_others: Whether larger ids are allowed.
    """

    words: TokenMask
    allows_others: bool

    @classmethod
    def of(cls, allowed: Collection[int] | None, banned: Collection[int]) -> "StaticMask":
        """Returns the mask of the allowed ids without the banned ones.

        Args:
          allowed: Allowed ids; None allows all.
          banned: Banned ids.
        """
        words = words_of_mask(1 + max(max(allowed or (0,)), max(banned, default=0)))
        mask = np.full(words, ALL_ALLOWED, np.uint32) if allowed is None else mask_of_ids(allowed, words)
        return cls(mask & ~mask_of_ids(banned, words), allows_others=allowed is None)

    def is_empty(self, banned: Collection[int] = ()) -> bool:
        """Returns whether the mask allows no token other than the banned ones, for any size of the vocabulary."""
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


type PhraseIndex = Mapping[int, Mapping[tuple[int, ...], Sequence[int]]]
"""Last tokens of phrases by the tokens before them, for each number of these. The choices of a request share it."""


def phrase_index(phrases: Iterable[tuple[int, ...]]) -> PhraseIndex:
    """Returns the index of phrases of two or more tokens."""
    index: dict[int, dict[tuple[int, ...], list[int]]] = {}
    for *prefix, last in phrases:
        index.setdefault(len(prefix), {}).setdefault(tuple(prefix), []).append(last)
    return index


class BadPhrases:
    """Constraint that bans the last token of a phrase once the other tokens have been generated.

    A mask takes one look-up for each length of phrases. `MAX_BAD_TOKENS` tokens have at most 90 lengths.

    Args:
      index: Index of the phrases.
    """

    def __init__(self, index: PhraseIndex) -> None:
        self._index = index
        self._recent: tuple[int, ...] = ()

    def fill_mask(self, mask: TokenMask) -> None:
        mask[:] = ALL_ALLOWED
        for length, last_tokens in self._index.items():
            for token_id in last_tokens.get(self._recent[-length:], ()):
                if token_id < 32 * len(mask):
                    mask[token_id >> 5] &= ~(1 << (token_id & 31)) & ALL_ALLOWED

    def is_ready(self, wait_s: float) -> bool:
        return True

    def advance(self, token_id: int) -> None:
        self._recent = (*self._recent, token_id)[-max(self._index) :]


def joined_constraint(own: Constraint | None, phrases: PhraseIndex | None) -> Constraint | None:
    """Returns a request's own constraint and its bad words of several tokens as one constraint, if there are any."""
    banned = None if phrases is None else BadPhrases(phrases)
    constraints = [each for each in (own, banned) if each is not None]
    return AllOf(constraints) if len(constraints) > 1 else next(iter(constraints), None)


class AllOf:
    """Constraint that allows the tokens that all of several constraints allow.

    Args:
      constraints: At least one constraint.
    """

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self._constraints = constraints

    def fill_mask(self, mask: TokenMask) -> None:
        self._constraints[0].fill_mask(mask)
        other = np.zeros_like(mask)
        for constraint in self._constraints[1:]:
            constraint.fill_mask(other)
            mask &= other

    def is_ready(self, wait_s: float) -> bool:
        return all(constraint.is_ready(wait_s) for constraint in self._constraints)

    def advance(self, token_id: int) -> None:
        for constraint in self._constraints:
            constraint.advance(token_id)
