"""The events of a stream, kept so that clients can follow it from any of them, and again."""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from ..api.common.sse import TYPED_EVENTS
from ..errors import ApiError, bad_value

MAX_BYTES: Final = 4 * 2**20
"""Some twenty thousand tokens, one by one."""

_EVENTS_PER_TURN: Final = 32
"""Events that a follower may take before others get their turn on the event loop: it may have thousands to catch up."""
_TAIL_BYTES: Final = 64 * 2**10
"""Maximum size of a log that only its present followers still read."""

_PLACE_BYTES: Final = 8
"""Size of an event's place in the log."""


class EventLog:
    """Encoded events by number, from 0. One task appends, any number follow, each at its own pace.

    Attributes:
      num_bytes: Memory that the events take. The oldest make room for the newest, of which there is always one.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._events: deque[bytes] = deque()
        self._first = 0
        self._is_closed = False
        self._news = asyncio.Event()
        self.num_bytes = 0

    def append(self, event: bytes) -> None:
        self._events.append(event)
        self.num_bytes += _size(event)
        self._make_room()
        self._tell()

    def shrink(self) -> None:
        """Keeps no more than a tail from now on: nobody can follow the log who does not do so already."""
        self._max_bytes = min(self._max_bytes, _TAIL_BYTES)
        self._make_room()

    def close(self) -> None:
        """There will be no more events."""
        self._is_closed = True
        self._tell()

    def check(self, number: int) -> None:
        """
        Raises:
          ApiError: the event of this number is no longer kept.
        """
        if number < self._first:
            message = f"only the events from number {self._first} on are still kept: send starting_after={self._first}"
            raise bad_value("starting_after", message)

    async def follow(self, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """The event of this number and all that come after it, and None whenever the next takes longer than `pause_s`.

        Raises:
          ApiError: an event was dropped before it could be given.
        """
        while True:
            news = self._news
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
                    await news.wait()
            except TimeoutError:
                yield None

    def _make_room(self) -> None:
        while self.num_bytes > self._max_bytes and len(self._events) > 1:
            self.num_bytes -= _size(self._events.popleft())
            self._first += 1

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def _size(event: bytes) -> int:
    return sys.getsizeof(event) + _PLACE_BYTES


async def replay(log: EventLog, number: int, pause_s: float) -> AsyncGenerator[bytes]:
    """The bytes of a stream of responses' events that begins with this one."""
    try:
        async for event in log.follow(number, pause_s):
            number += event is not None
            yield TYPED_EVENTS.pause if event is None else event
    except ApiError as error:  # the client is so slow that the log has run away from it
        detail = error.body["error"]
        about = {"code": detail["code"], "message": detail["message"], "param": detail["param"]}
        yield TYPED_EVENTS.encode({"type": "error", "sequence_number": number, **about})
