"""Log of a stream's events, which clients may follow from any event."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value

MAX_BYTES: Final = 4 * 2**20
"""Room for some 20,000 tokens, one by one."""

_EVENTS_PER_TURN: Final = 32
"""Number of events after which a follower yields to the event loop. A follower may be thousands of events behind."""

_PLACE_BYTES: Final = 8
"""Memory of an event's entry in the log."""


class EventsDroppedError(ApiError):
    """The event that a follower wants next was dropped.

    Args:
      first: Number of the oldest event that is kept.
    """

    def __init__(self, first: int) -> None:
        message = f"only the events from number {first} on are still kept: send starting_after={first}"
        super().__init__(kinds.INVALID_REQUEST, message, param="starting_after")


class EventLog:
    """Encoded events by number. One task appends, and any number of tasks follow, each at its own pace.

    Args:
      max_bytes: Maximum memory of the events.
      first: Number of the first event.

    Attributes:
      num_bytes: Memory of the events. The oldest are dropped for the newest, which always stays.
      first: Number of the oldest event that is kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, first: int = 0) -> None:
        self.first = first
        self._max_bytes = max_bytes
        self._events: deque[bytes] = deque()
        self._is_closed = False
        self._changed = asyncio.Event()
        self.num_bytes = 0

    @property
    def num_events(self) -> int:
        """Number of events so far, including dropped ones."""
        return self.first + len(self._events)

    def append(self, event: bytes) -> None:
        """Appends an event."""
        self._events.append(event)
        self.num_bytes += _size(event)
        self._make_room()
        self._wake()

    def close(self) -> None:
        """Ends the log: followers return after the last event."""
        self._is_closed = True
        self._wake()

    async def follow(self, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Yields the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          EventsDroppedError: An event was dropped before this follower had it.
        """
        while True:
            changed = self._changed
            while number < self.num_events:
                if number < self.first:
                    raise EventsDroppedError(self.first)
                yield self._events[number - self.first]
                number += 1
                if number % _EVENTS_PER_TURN == 0:
                    await asyncio.sleep(0)
            if self._is_closed:
                return
            try:
                async with asyncio.timeout(pause_s):
                    await changed.wait()
            except TimeoutError:
                yield None

    def _make_room(self) -> None:
        while self.num_bytes > self._max_bytes and len(self._events) > 1:
            self.num_bytes -= _size(self._events.popleft())
            self.first += 1

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def check_beginning(number: int, num_events: int) -> None:
    """Checks that a log of `num_events` events can be followed from an event.

    Raises:
      ApiError: The log ends before the event that precedes this one.
    """
    if number > num_events:
        last = num_events - 1
        log = f"the last event so far has number {last}" if num_events else "there is no event yet"
        raise bad_value("starting_after", f"{log}: send starting_after={last} or less")


def _size(event: bytes) -> int:
    return sys.getsizeof(event) + _PLACE_BYTES
