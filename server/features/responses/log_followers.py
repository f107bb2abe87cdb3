"""Followers of the logs in a database. Followers of the same response share one reader of new events."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Final

from ...database.database import Database, Transaction
from ...database.errors import StoreClosedError, StoreUnavailableError
from . import event_table
from .event_log import EventLog, EventsDroppedError, check_beginning
from .records import LogEntry

type Key = tuple[str, str]
"""Tenant and response id."""

_POLL_S: Final = 0.1
"""Seconds between two reads of events that another replica may have written, while new events arrive."""

_MAX_POLL_S: Final = 1.0
"""Maximum seconds between two reads. The interval doubles with each read that finds nothing."""

_OUTAGE_S: Final = 30.0
"""Seconds for which a follower waits for an unavailable database."""

_TAIL_BYTES: Final = 2**20
"""Memory for a response's newest events, which its followers share."""


class _Tail:
    """The newest events of a response, shared by its followers.

    Attributes:
      events: The events.
      is_open: Set when `events` begins at the log's end of that moment.
      num_followers: Number of followers.
      reading: Task that reads the events.
      error: Error that ended the reading; None if there was none.
    """

    reading: asyncio.Task[None]

    def __init__(self) -> None:
        self.events = EventLog(_TAIL_BYTES)
        self.is_open = asyncio.Event()
        self.num_followers = 0
        self.error: Exception | None = None


class LogFollowers:
    """Follows the logs of responses, whichever replica writes them.

    One task reads the end of a followed log for all of its followers. A follower that is behind the newest events reads
    the database itself until it has caught up, so that no follower waits for a slower one.

    Args:
      database: Database with the logs.
      changed: Returns the event that this replica's next commit to a log sets; None if this replica does not write the
        log.
    """

    def __init__(self, database: Database, changed: Callable[[Key], asyncio.Event | None]) -> None:
        self._database = database
        self._changed = changed
        self._tails: dict[Key, _Tail] = {}

    async def check(self, key: Key, number: int) -> None:
        """Checks that a log may be followed from an event.

        Raises:
          ApiError: The event was dropped, or the log ends before the event that precedes this one.
          StoreUnavailableError: The database is unavailable.
        """
        first, end = await self._database.run(lambda each: event_table.kept_events(each, *key))
        check_beginning(number, end)
        if number < first:
            raise EventsDroppedError(first)

    async def follow(self, key: Key, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Yields the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          StoreUnavailableError: The database was unavailable for too long.
        """
        async with self._tail(key) as tail:
            while True:
                async with aclosing(self._earlier(key, number, tail.events)) as earlier:
                    async for event in earlier:
                        yield event
                        number += 1
                if number < tail.events.first:
                    return  # the log was deleted
                try:
                    async with aclosing(tail.events.follow(number, pause_s)) as newest:
                        async for each in newest:
                            yield each
                            number += each is not None
                except EventsDroppedError:
                    continue
                if tail.error is not None:
                    raise tail.error
                return

    async def _earlier(self, key: Key, number: int, tail: EventLog) -> AsyncGenerator[bytes]:
        """Yields the existing events from a number up to the first event of a tail."""
        if number >= tail.first:
            return
        place = await self._run(lambda each: event_table.entry_of(each, *key, number))
        while number < tail.first:
            entries = await self._run(partial(_entries, key=key, place=place))
            if not entries:
                return
            if number < entries[0].first_event:
                raise EventsDroppedError(entries[0].first_event)
            for event in events_of(entries, number):
                yield event
                number += 1
            place = entries[-1].number + 1

    @asynccontextmanager
    async def _tail(self, key: Key) -> AsyncIterator[_Tail]:
        """Yields the tail of a log, which is read for as long as it has followers."""
        tail = self._tails.get(key)
        if tail is None:
            tail = self._tails[key] = _Tail()
            tail.reading = asyncio.create_task(self._read(key, tail))
        tail.num_followers += 1
        try:
            await tail.is_open.wait()
            yield tail
        finally:
            tail.num_followers -= 1
            if not tail.num_followers:
                self._close(key, tail)
                tail.reading.cancel()

    async def _read(self, key: Key, tail: _Tail) -> None:
        """Reads new events until the response has ended."""
        try:
            end = await self._run(lambda each: event_table.end_of_log(each, *key))
            place, tail.events = end.num_entries, EventLog(_TAIL_BYTES, end.num_events)
            tail.is_open.set()
            pause_s = _POLL_S
            while True:
                changed = self._changed(key)
                entries, may_grow = await self._run(partial(_next, key=key, place=place))
                for event in events_of(entries, tail.events.num_events):
                    tail.events.append(event)
                if not may_grow:
                    return
                place = entries[-1].number + 1 if entries else place
                pause_s = _POLL_S if entries else min(2 * pause_s, _MAX_POLL_S)
                if len(entries) < event_table.MAX_ENTRIES:
                    await _wait(changed, pause_s)
        except Exception as error:
            tail.error = error
        finally:
            self._close(key, tail)

    def _close(self, key: Key, tail: _Tail) -> None:
        """Ends a tail. Later followers get a new one."""
        if self._tails.get(key) is tail:
            del self._tails[key]
        tail.events.close()
        tail.is_open.set()

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


def _entries(transaction: Transaction, key: Key, place: int) -> Sequence[LogEntry]:
    return event_table.entries(transaction, *key, place)


def _next(transaction: Transaction, key: Key, place: int) -> tuple[Sequence[LogEntry], bool]:
    return event_table.follow(transaction, *key, place)


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
