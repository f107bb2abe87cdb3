"""Tells a step of the engine that is stuck from one that is long."""

from typing import Final

_LONGEST_TICK_S: Final = 1.0
"""Counted between two looks, at most: while the whole process is frozen, a step cannot get on either."""


class Watchdog:
    """Adds up how long the engine has been in the same step, look by look.

    Args:
      limit_s: so long is no step.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._step: int | None = None
        self._spent_s = 0.0
        self._last_look: float | None = None

    def is_stuck(self, step: int | None, now: float) -> bool:
        """
        Args:
          step: the number of the step that the engine is in; None between two.
          now: seconds that only go forward.
        """
        passed = 0.0 if self._last_look is None else min(now - self._last_look, _LONGEST_TICK_S)
        self._spent_s = self._spent_s + passed if step is not None and step == self._step else 0.0
        self._step, self._last_look = step, now
        return self._spent_s >= self._limit_s
