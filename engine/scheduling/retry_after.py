"""Estimates when a refused request may be sent again."""

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
    same rhythm: each when as many slots have become free as requests were refused before it.

    Args:
      slots: Number of slots.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean_s: float | None = None
        self._num_refused = 0

    def released(self, service_s: float) -> None:
        """Books a slot that became free.

        Args:
          service_s: Number of seconds for which a request had the slot.
        """
        last = service_s if self._mean_s is None else self._mean_s
        self._mean_s = last + _WEIGHT * (service_s - last)
        self._num_refused = max(0, self._num_refused - 1)

    def refused(self) -> float:
        """Books a refused request, and returns the number of seconds after which it should be sent again."""
        if self._mean_s is None:
            return _UNKNOWN_S
        interval = self._mean_s / self._slots
        estimate = (self._num_refused + 1) * interval
        if estimate < _LONGEST_S:  # requests beyond that are not counted, as they don't wait for their turn
            self._num_refused += 1
        return min(max(estimate, _SHORTEST_S), _LONGEST_S)
