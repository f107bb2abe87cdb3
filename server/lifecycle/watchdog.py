"""Detects an engine step that is stuck."""

from typing import Final

_MAX_INTERVAL_S: Final = 1.0
"""Maximum time counted between two checks: while the whole process is frozen, a step cannot advance either."""


class Watchdog:
    """Measures how long the engine has been in one step.

    Args:
      limit_s: Seconds after which a device step is considered stuck.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._step: int | None = None
        self._spent_s = 0.0
        self._last_check: float | None = None

    def is_stuck(self, step: int | None, now: float) -> bool:
        """Checks the current step. Call it regularly.

        Args:
          step: Number of the engine's current step; None between two steps.
          now: Monotonic time in seconds.
        """
        passed = 0.0 if self._last_check is None else min(now - self._last_check, _MAX_INTERVAL_S)
        self._spent_s = self._spent_s + passed if step is not None and step == self._step else 0.0
        self._step, self._last_check = step, now
        return self._spent_s >= self._limit_s
