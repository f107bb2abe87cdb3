"""The clock of a discrete-event simulation."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Clock:
    """Calls functions at simulated times. Calls for the same time run in the order in which they were added.

    Attributes:
      now: Seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls a function after some seconds."""
        heappush(self._events, (self.now + seconds, next(self._numbers), call))

    def run(self, until: float) -> None:
        """Makes all calls before a time, and ends at that time; an infinite one ends with the last call."""
        while self._events and self._events[0][0] < until:
            self.now, _, call = heappop(self._events)
            call()
        if until < float("inf"):
            self.now = until
