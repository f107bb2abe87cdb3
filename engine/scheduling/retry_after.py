"""When there will be room again, by what was measured."""

from typing import Final

_WEIGHT: Final = 0.1
"""Of the latest service time in the mean of all: the last twenty or so decide."""

_UNKNOWN_S: Final = 1.0
"""Said while nothing has been measured."""

_SHORTEST_S: Final = 0.05
_LONGEST_S: Final = 60.0
"""Clients believe no more than a minute or two, and load changes."""


class RetryAfterEstimator:
    """Slots come free one after the other, every (mean service time / slots) seconds.

    Those that were refused are told to come back one after the other, too: each when as many slots have come free as
    were refused before it.

    Args:
      slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean_s: float | None = None
        self._num_refused = 0

    def released(self, service_s: float) -> None:
        """A slot has come free, and its request had it for so long."""
        last = service_s if self._mean_s is None else self._mean_s
        self._mean_s = last + _WEIGHT * (service_s - last)
        self._num_refused = max(0, self._num_refused - 1)

    def refused(self) -> float:
        """Books a request that was turned away; gives the seconds after which it should come back."""
        if self._mean_s is None:
            return _UNKNOWN_S
        interval = self._mean_s / self._slots
        wanted = (self._num_refused + 1) * interval
        if wanted < _LONGEST_S:  # beyond, those who were turned away are not in line any more
            self._num_refused += 1
        return min(max(wanted, _SHORTEST_S), _LONGEST_S)
