"""Estimates when a slot will be free for a refused request."""

from typing import Final

_WEIGHT: Final = 0.1
"""Weight of the latest service time in the moving average: about the last twenty requests count."""

_UNKNOWN_S: Final = 1.0
"""Estimate while no request has ended."""

_SHORTEST_S: Final = 0.05
_LONGEST_S: Final = 60.0
"""Bounds of the estimate. Load changes within a minute, and clients don't wait longer."""


class RetryAfterEstimator:
    """Estimates when a slot will be free for a refused request.

    One slot becomes free every (mean service time / slots) seconds. Estimates have the same rate: a refused request
    returns when as many slots have become free as requests were refused before it. The mean
    service time covers the latest ended requests, but is at least the mean time for which the running ones have had
    their slots, so that long requests are noticed while they run.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean_s: float | None = None
        self._num_running = 0
        self._assigned_sum = 0.0  # sum of the times at which the running requests got their slots
        self._num_refused = 0

    def assigned(self, now: float) -> None:
        """Records a slot that a request got."""
        self._num_running += 1
        self._assigned_sum += now

    def released(self, assigned_at: float, now: float) -> None:
        """Records a slot that became free.

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
        """Resets the count of refused requests, once no request is running: a client that returns now immediately gets
        a slot.

        Some clients never return, and others return early and are refused and counted repeatedly.
        """
        self._num_refused = 0

    def refused(self, now: float) -> float:
        """Records a refused request, and returns the number of seconds after which it should be sent again."""
        if self._mean_s is None:
            return _UNKNOWN_S
        age = now - self._assigned_sum / self._num_running if self._num_running else 0.0
        interval = max(self._mean_s, age) / self._slots
        estimate = (self._num_refused + 1) * interval
        if estimate < _LONGEST_S:  # requests beyond that are not counted, since they don't wait that long
            self._num_refused += 1
        return min(max(estimate, _SHORTEST_S), _LONGEST_S)
