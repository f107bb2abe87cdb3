"""A compiled grammar, and what follows one answer through it."""

import numpy as np
from llguidance import LLMatcher

from ...engine import RoostError
from ...engine.constraint import TokenMask
from .spec import one_line


class GrammarFailedError(RoostError):
    """A grammar has become too complex on the way, or got a token that it had not allowed."""


class GrammarConstraint:
    """A `Constraint`. End tokens are allowed exactly where the grammar may end."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def is_ready(self, wait_s: float) -> bool:
        return True

    def fill_mask(self, mask: TokenMask) -> None:
        """
        Raises:
          GrammarFailedError: it takes too much work to tell what may come next.
        """
        words = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        self._check()
        mask[:] = words[: mask.size]

    def advance(self, token_id: int) -> None:
        """
        Raises:
          GrammarFailedError: the token was not allowed.
        """
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = one_line(self._matcher.get_error())
            raise GrammarFailedError(f"the grammar cannot be followed any further: {reason}")


class Grammar:
    """Compiled once, for any number of answers.

    Args:
      matcher: at the beginning of the grammar; it stays there.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def constraint(self) -> GrammarConstraint:
        """For one more answer; costs next to nothing."""
        return GrammarConstraint(self._matcher.deep_copy())
