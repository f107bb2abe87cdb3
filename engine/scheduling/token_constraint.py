"""The output constraint of a running request, and the masks that it gives tokens."""

from typing import Final

import numpy as np

from ..core.errors import ConstraintError
from ..core.output_constraint import TokenMask, joined_constraint
from ..core.request import Request

MASK_WAIT_S: Final = 0.002
"""Seconds that a step may wait for a mask. Most take a tenth of a millisecond, those of hostile grammars minutes."""

NO_CHOICE_TEXT: Final = "no token is allowed to come next"
"""Error of a request whose constraint and masks leave no token."""


class TokenConstraint:
    """Masks tokens by a request's constraint, its bad words and its allowed tokens. Any failure is a `ConstraintError`.

    Args:
      request: Request with a constraint, or with bad words of several tokens.
      words: Number of words of a mask.
    """

    def __init__(self, request: Request, words: int) -> None:
        constraint = joined_constraint(request.constraint, request.params.bad_phrases)
        assert constraint is not None
        self._constraint = constraint
        self._static = request.params.static_mask
        self._words = words

    def mask(self, wait_s: float = 0.0) -> TokenMask | None:
        """Returns the mask of the next token; None if it is not computed yet.

        Args:
          wait_s: Maximum number of seconds to wait for the constraint.

        Raises:
          ConstraintError: The constraint failed, or allows no token.
        """
        try:
            return self._mask() if self._constraint.is_ready(wait_s) else None
        except Exception as error:  # a constraint may raise anything; only this request depends on it
            raise ConstraintError(str(error)) from error

    def advance(self, token_id: int) -> None:
        """Passes a generated token to the constraint.

        Raises:
          ConstraintError: The constraint failed.
        """
        try:
            self._constraint.advance(token_id)
        except Exception as error:  # as above
            raise ConstraintError(str(error)) from error

    def _mask(self) -> TokenMask:
        mask = np.zeros(self._words, np.uint32)
        self._constraint.fill_mask(mask)
        if self._static is not None:
            self._static.narrow(mask)
        if not mask.any():
            raise ConstraintError(NO_CHOICE_TEXT)
        return mask
