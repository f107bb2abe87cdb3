"""The output constraint of a running request, and its token masks."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from ..types.errors import ConstraintError, ConstraintLostError
from ..types.output_constraint import Forced, ForcingConstraint, TokenMask, joined_constraint
from ..types.request import Request

MASK_WAIT_S: Final = 0.002
"""Seconds for which a step may wait for a mask. Most masks take a tenth of a millisecond, masks of hostile grammars
minutes."""

NO_CHOICE_TEXT: Final = "no token is allowed to come next"
"""Error of a request whose constraint and masks leave no token."""

_NOT_ALLOWED: Final = "a token was sampled that the constraint does not allow"
"""Error of a request that got a token without, or against, the mask of its constraint. It never reaches the client."""


class TokenConstraint:
    """Masks tokens by a request's constraint, its bad words and its allowed tokens. Any failure is a `ConstraintError`.

    Args:
      request: Request with a constraint, or with bad words of several tokens. Its replayed tokens are processed
        immediately.
      words: Number of words of a mask.

    Attributes:
      num_tokens: Number of tokens that the constraint has processed.
      mask: Mask of the token after them; None if it is not computed yet.
      forced: Tokens that the constraint forces after them, the first of which is the only one of `mask`; None if it is
        known to force none.
    """

    def __init__(self, request: Request, words: int) -> None:
        constraint = joined_constraint(request.constraint, request.params.bad_phrases)
        assert constraint is not None
        self.num_tokens = 0
        self.mask: TokenMask | None = None
        self.forced: Forced | None = None
        self._constraint = constraint
        self._static = request.params.static_mask
        self._words = words
        if request.replay is not None:
            self._advance(request.replay.token_ids)
        self.update()

    def update(self, wait_s: float = 0.0) -> None:
        """Sets the mask of the next token and the forced tokens, if they are computed.

        Args:
          wait_s: Maximum number of seconds to wait for the constraint.

        Raises:
          ConstraintError: The constraint failed, or allows no token.
        """
        try:
            if self.mask is None and self._constraint.is_ready(wait_s):
                self.mask = self._compute_mask()
                self.forced = self._compute_forced()
        except ConstraintLostError:
            raise
        except Exception as error:  # a constraint may raise anything; only this request depends on it
            raise ConstraintError(str(error)) from error

    def take(self, token_ids: tuple[int, ...]) -> None:
        """Processes a token that was sampled under the mask, or forced tokens and the one after them.

        Raises:
          ConstraintError: A token is not allowed, or the constraint failed.
        """
        forced, mask = self.forced or ((), self.mask)
        is_forced = token_ids[: len(forced)] == forced[: len(token_ids)]
        if mask is None or not is_forced or not all(_has(mask, token_id) for token_id in token_ids[len(forced) :]):
            raise ConstraintError(_NOT_ALLOWED)
        self._advance(token_ids)

    def _advance(self, token_ids: Sequence[int]) -> None:
        self.mask = self.forced = None
        self.num_tokens += len(token_ids)
        try:
            for token_id in token_ids:
                self._constraint.advance(token_id)
        except Exception as error:  # as above
            raise ConstraintError(str(error)) from error

    def _compute_mask(self) -> TokenMask:
        mask = np.zeros(self._words, np.uint32)
        self._constraint.fill_mask(mask)
        if self._static is not None:
            self._static.narrow(mask)
        if not mask.any():
            raise ConstraintError(NO_CHOICE_TEXT)
        return mask

    def _compute_forced(self) -> Forced | None:
        """Returns the forced tokens; None with other masks, which may leave no token somewhere ahead."""
        if self._static is not None or not isinstance(self._constraint, ForcingConstraint):
            return None
        token_ids, mask = self._constraint.forced()
        return Forced(token_ids, mask[: self._words]) if token_ids and mask.any() else None


def _has(mask: TokenMask, token_id: int) -> bool:
    return bool(mask[token_id >> 5] >> np.uint32(token_id & 31) & 1)
