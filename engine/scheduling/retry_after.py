"""Estimates when a slot will be free for a refused request."""

from typing import Final

_WEIGHT: Final = 0.1
"""Weight of the latest service time in the moving average: about the last twenty requests count."""

_UNKNOWN_S: Final = 1.0
"""Estimate while no request has ended."""

_SHORTEST_S: Final = 0.05
_LONGEST_S: Final = 60.0
"""Bounds of the estimate. Load changes within a minute, and clients don't wait for longer."""


class RetryAfterEstimator:
    """Estimates when a slot will be free for a refused request.

    Slots become free one after the other, every (mean service time / slots) seconds. Refused requests come back in the
    same rhythm: each when as many slots have become free as requests were refused before it. The mean service time is
    that of the latest requests that ended, but no less than the mean time for which the running ones have had their
    slots: long requests are noticed while they run.

    Args:
      slots: Number of slots.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean_s: float | None = None
        self._num_running = 0
        self._assigned_sum = 0.0  # of the times at which the running requests got their slots
        self._num_refused = 0

    def assigned(self, now: float) -> None:
        """Books a slot that a request got."""
        self._num_running += 1
        self._assigned_sum += now

    def released(self, assigned_at: float, now: float) -> None:
        """Books a slot that became free.

        Args:
          assigned_at: Time at which the request got the slot.
          now: Current time.
        """
        self._num_running -= 1
        self._assigned_sum = self._assigned_sum - assigned_at if self._num_running else 0.0
        service_s = now - assigned_at
        last = service_s if self._mean_s is None else self._mean_s
        self._mean_s = last + _WEIGHT * (service_s - last)
        self._num_refused = max(0, self._num_refused - 1)

    def forget_refused(self) -> None:
        """Forgets refused requests, since nothing runs any more: a client that comes back now gets a slot at once.

        Some never come back, and those that come back early are refused, and counted, again and again.
        """
        self._num_refused = 0

    def refused(self, now: float) -> float:
        """Books a refused request, and returns the number of seconds after which it should be sent again."""
        if self._mean_s is None:
            return _UNKNOWN_S
        age = now - self._assigned_sum / self._num_running if self._num_running else 0.0
        interval = max(self._mean_s, age) / self._slots
        estimate = (self._num_refused + 1) * interval
        if estimate < _LONGEST_S:  # requests beyond that are not counted, as they don't wait for their turn
            self._num_refused += 1
        return min(max(estimate, _SHORTEST_S), _LONGEST_S)
