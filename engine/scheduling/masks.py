"""Token masks of requests with an output constraint."""

from collections.abc import Iterable
from typing import Final

import numpy as np

from ..core.errors import ConstraintError
from .running_request import RunningRequest

MASK_WAIT_S: Final = 0.002
"""Seconds that a step may wait for a mask. Most take a tenth of a millisecond, those of hostile grammars minutes."""

NO_CHOICE_TEXT: Final = "no token is allowed to come next"
"""Error of a request whose constraint and masks leave no token."""


def update_pending_masks(
    requests: Iterable[RunningRequest], words: int
) -> list[tuple[RunningRequest, ConstraintError]]:
    """Updates masks that were not computed yet. Waits for one constraint at most, to keep the step short.

    Args:
      requests: Running requests, oldest first.
      words: Number of words of a mask.

    Returns:
      Requests whose constraint failed.
    """
    failed = []
    wait_s = MASK_WAIT_S
    for running in [each for each in requests if each.awaits_mask]:
        try:
            update_mask(running, words, wait_s)
        except ConstraintError as error:
            failed.append((running, error))
        if running.awaits_mask:
            wait_s = 0.0
    return failed


def advance_constraint(running: RunningRequest, token_id: int, words: int) -> None:
    """Passes a generated token to the constraint, and updates the mask of the next one.

    Raises:
      ConstraintError: The constraint failed, or allows no token.
    """
    if running.constraint is None:
        return
    try:
        running.constraint.advance(token_id)
    except Exception as error:  # a constraint may raise anything; only this request depends on it
        raise ConstraintError(str(error)) from error
    update_mask(running, words)


def update_mask(running: RunningRequest, words: int, wait_s: float = 0.0) -> None:
    """Asks the constraint for the mask of the next token; sets `awaits_mask` if it is not computed yet.

    Args:
      running: Request with or without a constraint.
      words: Number of words of the mask.
      wait_s: Maximum number of seconds to wait for the constraint.

    Raises:
      ConstraintError: The constraint failed, or allows no token.
    """
    try:
        _update_mask(running, words, wait_s)
    except Exception as error:  # a constraint may raise anything; only this request depends on it
        raise ConstraintError(str(error)) from error


def _update_mask(running: RunningRequest, words: int, wait_s: float) -> None:
    if running.constraint is None:
        return
    running.awaits_mask = not running.constraint.is_ready(wait_s)
    if running.awaits_mask:
        return
    mask, static = np.zeros(words, np.uint32), running.request.params.static_mask
    running.constraint.fill_mask(mask)
    if static is not None:
        static.narrow(mask)
    if not mask.any():
        raise ConstraintError(NO_CHOICE_TEXT)
    running.mask = mask
