"""Which tokens a request's own parameters let come: by a mask that never changes, or by a constraint."""

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

from .constraint import Constraint, TokenMask, mask_of_ids
from .request import Request, SamplingParams


def static_mask(params: SamplingParams, words: int) -> TokenMask | None:
    """What `allowed_token_ids` and bad words of one token leave; None where there are neither."""
    banned = [word[0] for word in params.bad_words if len(word) == 1]
    if params.allowed_token_ids is None and not banned:
        return None
    mask = np.full(words, 0xFFFFFFFF, np.uint32)
    if params.allowed_token_ids is not None:
        mask = mask_of_ids(params.allowed_token_ids, words)
    return mask & ~mask_of_ids(banned, words)


def constraint_of(request: Request) -> Constraint | None:
    """The request's own constraint and its bad words of several tokens, as one."""
    phrases = [word for word in request.params.bad_words if len(word) > 1]
    parts = [part for part in (request.constraint, BadPhrases(phrases) if phrases else None) if part is not None]
    return AllOf(parts) if len(parts) > 1 else next(iter(parts), None)


class AllOf:
    """A constraint that allows what all of its parts allow."""

    def __init__(self, parts: Sequence[Constraint]) -> None:
        self._parts = parts

    def fill_mask(self, mask: TokenMask) -> None:
        self._parts[0].fill_mask(mask)
        other = np.zeros_like(mask)
        for part in self._parts[1:]:
            part.fill_mask(other)
            mask &= other

    def advance(self, token_id: int) -> None:
        for part in self._parts:
            part.advance(token_id)


class BadPhrases:
    """Does not let the last token of a phrase come when the others have just been generated."""

    def __init__(self, phrases: Iterable[tuple[int, ...]]) -> None:
        self._phrases = list(phrases)
        self._recent: deque[int] = deque(maxlen=max(map(len, self._phrases)) - 1)

    def fill_mask(self, mask: TokenMask) -> None:
        recent = tuple(self._recent)
        ends = [phrase[-1] for phrase in self._phrases if recent[1 - len(phrase) :] == phrase[:-1]]
        mask[:] = ~mask_of_ids(ends, len(mask))

    def advance(self, token_id: int) -> None:
        self._recent.append(token_id)
