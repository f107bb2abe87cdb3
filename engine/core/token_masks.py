"""The constraint of a request: its own and what its parameters add, as one."""

from collections.abc import Sequence

import numpy as np

from .bad_phrases import BadPhrases
from .output_constraint import Constraint, TokenMask
from .request import Request


def constraint_of(request: Request) -> Constraint | None:
    """The request's own constraint and its bad words of several tokens, as one."""
    phrases = request.params.bad_phrases
    own = None if phrases is None else BadPhrases(phrases)
    parts = [part for part in (request.constraint, own) if part is not None]
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

    def is_ready(self, wait_s: float) -> bool:
        return all(part.is_ready(wait_s) for part in self._parts)

    def advance(self, token_id: int) -> None:
        for part in self._parts:
            part.advance(token_id)
