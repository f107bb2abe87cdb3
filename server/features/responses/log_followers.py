"""Followers of the logs in a database. Followers of the same response share one reader of new events."""

import asyncio
import sys
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import Final

from ...database.database import Database, Transaction
from ...database.errors import StoreClosedError, StoreUnavailableError
from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value
from ...storage.objects import Name
from ...tenants import tenant
from . import event_table
from .event_table import LogEntry

_POLL_S: Final = 0.1
"""Seconds between two reads of events that another replica may have written, while new events arrive."""

_MAX_POLL_S: Final = 1.0
"""Maximum seconds between two reads. The interval doubles with each read that finds nothing."""

_OUTAGE_S: Final = 30.0
"""Seconds for which a follower waits for an unavailable database."""

_TAIL_BYTES: Final = 2**20
"""Memory for a response's newest events, which its followers share."""

_EVENTS_PER_TURN: Final = 32
"""Number of events after which a follower yields to the event loop. A follower may be thousands of events behind."""

_PLACE_BYTES: Final = 8
"""Memory of an event's entry in the log."""

MAX_FOLLOWERS: Final = 256
"""Maximum number of streams of stored responses that a tenant follows at a time, on each replica."""


class EventsDroppedError(ApiError):
    """The event that a follower wants next was dropped.

    Args:
      first: Number of the oldest event that is kept.
    """

    def __init__(self, first: int) -> None:
        message = f"only the events from number {first} on are still kept: send starting_after={first}"
        super().__init__(kinds.INVALID_REQUEST, message, param="starting_after")


class EventLog:
    """Newest events of a response, by number. One task appends, and any number of tasks follow, each at its own pace.

    Args:
      max_bytes: Maximum memory of the events.
      first: Number of the first event.

    Attributes:
      num_bytes: Memory of the events. The oldest are dropped for the newest, which always stays.
      first: Number of the oldest event that is kept.
      num_followers: Number of followers that `LogFollowers` counts.
      reading: Task that reads the events from the database.
    """

    reading: asyncio.Task[None]

    def __init__(self, max_bytes: int = _TAIL_BYTES, first: int = 0) -> None:
        self.first = first
        self.num_bytes = 0
        self.num_followers = 0
        self._max_bytes = max_bytes
        self._events: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False
        self._error: Exception | None = None

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

    def close(self, error: Exception | None = None) -> None:
        """Ends the log: followers return after the last event, or raise an error."""
        self._is_closed, self._error = True, error
        self._wake()

    async def follow(self, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Yields the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          EventsDroppedError: An event was dropped before this follower had it.
          Exception: The error with which the log was closed.
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
            if self._error is not None:
                raise self._error
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


def _size(event: bytes) -> int:
    return sys.getsizeof(event) + _PLACE_BYTES


class Followers:
    """Counts the followers of each tenant."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Counts a follower of the current tenant until the end of the `with` block.

        Raises:
          ApiError: 429, the tenant has reached the maximum number of followers.
        """
        owner = tenant.get()
        if self._open[owner] >= MAX_FOLLOWERS:
            message = f"this API key follows {MAX_FOLLOWERS} streams of background responses, which is the limit"
            raise ApiError(kinds.TOO_MANY_FOLLOWERS, f"{message}: close some of them")
        self._open[owner] += 1
        try:
            yield
        finally:
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]


class LogFollowers:
    """Follows the logs of responses, whichever replica writes them.

    One task reads the end of a followed log for all of its followers. A follower that is behind the newest events reads
    the database itself until it has caught up, so that no follower waits for a slower one.

    Args:
      database: Database with the logs.
      changed: Returns the event that this replica's next commit to a log sets; None if this replica does not write the
        log.
    """

    def __init__(self, database: Database, changed: Callable[[Name], asyncio.Event | None]) -> None:
        self._database = database
        self._changed = changed
        self._tails: dict[Name, EventLog] = {}

    async def check(self, key: Name, number: int) -> None:
        """Checks that a log may be followed from an event.

        Raises:
          ApiError: The event was dropped, or the log ends before the event that precedes this one.
          StoreUnavailableError: The database is unavailable.
        """
        first, end = await self._database.run(lambda each: event_table.kept_events(each, key))
        if number > end:
            log = f"the last event so far has number {end - 1}" if end else "there is no event yet"
            raise bad_value("starting_after", f"{log}: send starting_after={end - 1} or less")
        if number < first:
            raise EventsDroppedError(first)

    async def follow(self, key: Name, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Yields the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          StoreUnavailableError: The database was unavailable for too long.
        """
        async with self._tail(key) as tail:
            while True:
                async with aclosing(self._earlier(key, number, tail)) as earlier:
                    async for event in earlier:
                        yield event
                        number += 1
                if number < tail.first:
                    return  # the log was deleted
                try:
                    async with aclosing(tail.follow(number, pause_s)) as newest:
                        async for each in newest:
                            yield each
                            number += each is not None
                    return
                except EventsDroppedError:
                    continue

    async def _earlier(self, key: Name, number: int, tail: EventLog) -> AsyncGenerator[bytes]:
        """Yields the existing events from a number up to the first event of a tail."""
        if number >= tail.first:
            return
        place = await self._run(lambda each: event_table.entry_of(each, key, number))
        while number < tail.first:
            entries = await self._run(partial(event_table.entries, name=key, place=place))
            if not entries:
                return
            if number < entries[0].first_event:
                raise EventsDroppedError(entries[0].first_event)
            for event in events_of(entries, number):
                yield event
                number += 1
            place = entries[-1].number + 1

    @asynccontextmanager
    async def _tail(self, key: Name) -> AsyncIterator[EventLog]:
        """Yields the newest events of a log, which are read for as long as they have followers."""
        if key not in self._tails:
            end = await self._run(lambda each: event_table.end_of_log(each, key))
            if key not in self._tails:
                tail = self._tails[key] = EventLog(_TAIL_BYTES, end.num_events)
                tail.reading = asyncio.create_task(self._read(key, tail, end.num_entries))
        tail = self._tails[key]
        tail.num_followers += 1
        try:
            yield tail
        finally:
            tail.num_followers -= 1
            if not tail.num_followers:
                self._close(key, tail)
                tail.reading.cancel()

    async def _read(self, key: Name, tail: EventLog, place: int) -> None:
        """Reads new events until the response has ended.

        Args:
          place: Place in the log of the entry to begin with.
        """
        error, pause_s = None, _POLL_S
        try:
            while True:
                changed = self._changed(key)
                entries, may_grow = await self._run(partial(event_table.follow, name=key, place=place))
                for event in events_of(entries, tail.num_events):
                    tail.append(event)
                if not may_grow:
                    return
                place = entries[-1].number + 1 if entries else place
                pause_s = _POLL_S if entries else min(2 * pause_s, _MAX_POLL_S)
                if len(entries) < event_table.MAX_ENTRIES:
                    await _wait(changed, pause_s)
        except Exception as failure:
            error = failure
        finally:
            self._close(key, tail, error)

    def _close(self, key: Name, tail: EventLog, error: Exception | None = None) -> None:
        """Ends a tail. Later followers get a new one."""
        if self._tails.get(key) is tail:
            del self._tails[key]
        tail.close(error)

    async def _run[T](self, read: Callable[[Transaction], T]) -> T:
        """Reads from the database, and waits for a database that is unavailable for a moment."""
        now = asyncio.get_running_loop().time
        give_up_at = now() + _OUTAGE_S
        while True:
            try:
                return await self._database.run(read)
            except StoreClosedError:
                raise
            except StoreUnavailableError:
                if now() >= give_up_at:
                    raise
                await asyncio.sleep(_POLL_S)


def events_of(entries: Sequence[LogEntry], number: int) -> Iterator[bytes]:
    """Yields the events that begin at a number. An event ends with an empty line, and contains no other."""
    for entry in entries:
        events = entry.events.split(b"\n\n")[:-1]
        for event in events[max(number - entry.first_event, 0) :]:
            yield event + b"\n\n"


async def _wait(changed: asyncio.Event | None, pause_s: float) -> None:
    """Waits for this replica's next commit to a log, or for a pause if another replica may write it."""
    if changed is None:
        await asyncio.sleep(pause_s)
        return
    try:
        async with asyncio.timeout(_MAX_POLL_S):
            await changed.wait()
    except TimeoutError:
        pass
