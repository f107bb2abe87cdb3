"""Log of a stream's events, which clients may follow from any of them."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from ...errors.request_errors import bad_value

MAX_BYTES: Final = 4 * 2**20
"""Room for some 20,000 tokens, one by one."""

_EVENTS_PER_TURN: Final = 32
"""Number of events after which a follower yields to the event loop: it may be thousands behind."""

_TAIL_BYTES: Final = 64 * 2**10
"""Maximum size of a log that only its present followers still read."""

_PLACE_BYTES: Final = 8
"""Memory of an event's place in the log."""


class EventLog:
    """Encoded events by number, from 0. One task appends, and any number of tasks follow, each at its own pace.

    Attributes:
      num_bytes: Memory of the events. The oldest are dropped for the newest, which always stays.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._events: deque[bytes] = deque()
        self._first = 0
        self._is_closed = False
        self._changed = asyncio.Event()
        self.num_bytes = 0

    def append(self, event: bytes) -> None:
        """Appends an event."""
        self._events.append(event)
        self.num_bytes += _size(event)
        self._make_room()
        self._wake()

    def shrink(self) -> None:
        """Keeps only a tail from now on: no new follower can come."""
        self._max_bytes = min(self._max_bytes, _TAIL_BYTES)
        self._make_room()

    def close(self) -> None:
        """Ends the log: followers return after the last event."""
        self._is_closed = True
        self._wake()

    def check(self, number: int) -> None:
        """Checks that an event is still kept.

        Raises:
          ApiError: The event of this number was dropped.
        """
        if number < self._first:
            message = f"only the events from number {self._first} on are still kept: send starting_after={self._first}"
            raise bad_value("starting_after", message)

    async def follow(self, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Yields the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          ApiError: An event was dropped before this follower had it.
        """
        while True:
            changed = self._changed
            while number < self._first + len(self._events):
                self.check(number)
                yield self._events[number - self._first]
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
            self._first += 1

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _size(event: bytes) -> int:
    return sys.getsizeof(event) + _PLACE_BYTES
