"""Combines the output constraint of a request with its bad words."""

from collections.abc import Sequence

import numpy as np

from .bad_phrases import BadPhrases
from .output_constraint import Constraint, TokenMask
from .request import Request


def constraint_of(request: Request) -> Constraint | None:
    """Returns the request's own constraint and its bad words of several tokens as one constraint, if there are any."""
    phrases = request.params.bad_phrases
    own = None if phrases is None else BadPhrases(phrases)
    constraints = [each for each in (request.constraint, own) if each is not None]
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
