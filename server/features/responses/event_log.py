"""Logs of responses: their table, with all statements as functions of a transaction, and their followers."""

import asyncio
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import orjson
from pydantic import TypeAdapter

from ...database.database import Database, Transaction
from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value
from ...generation.admission import stored_json
from ...generation.delta import Delta
from ...storage.objects import Name, Table
from ...storage.work import Lease
from ...tenants import tenant

MAX_ENTRIES: Final = 256
"""Maximum number of log entries that are read at a time."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Tokens and events that were committed together.

    Attributes:
      number: Place in the log, from 0.
      first_event: Sequence number of the first event.
      num_events: Number of events.
      first_token: Index of the first generated token.
      num_tokens: Number of generated tokens.
      delta: JSON of the delta that the events were built from; empty without tokens.
      events: Encoded events, one after the other; empty if the response is not streamed.
    """

    number: int = -1
    first_event: int = 0
    num_events: int = 0
    first_token: int = 0
    num_tokens: int = 0
    delta: bytes = b""
    events: bytes = b""

    @property
    def num_bytes(self) -> int:
        """Bytes that the entry takes."""
        return len(self.delta) + len(self.events)

    @property
    def next_event(self) -> int:
        """Sequence number of the event after it."""
        return self.first_event + self.num_events

    @property
    def next_token(self) -> int:
        """Number of tokens that were generated up to its end."""
        return self.first_token + self.num_tokens

    def followed_by(
        self, events: Sequence[bytes], delta: bytes = b"", num_tokens: int = 0, *, keeps_events: bool = True
    ) -> "LogEntry":
        """Returns the log's next entry.

        Args:
          delta: JSON of the delta that the events were built from; empty without one.
          keeps_events: Whether the response is streamed.
        """
        kept = b"".join(events) if keeps_events else b""
        return LogEntry(self.number + 1, self.next_event, len(events), self.next_token, num_tokens, delta, kept)


BEFORE_FIRST: Final = LogEntry()
"""Last entry of an empty log."""

EVENTS: Final = Table("roost_events", LogEntry, key=("tenant", "id", "number"), under={"tenant": str, "id": str})

_PACKED: Final = ("text", "calls", "token_ids", "logprobs", "num_cached", "num_sent")
"""Fields of a delta that a log keeps."""

_DELTA: Final = TypeAdapter(Delta)

_LOG: Final = "tenant = ? AND id = ?"


def append(transaction: Transaction, appends: Sequence[tuple[Lease, LogEntry]]) -> None:
    """Appends entries whose leases are held. Repeating it changes nothing."""
    EVENTS.put(transaction, [(lease.tenant, lease.id, *EVENTS.values(entry)) for lease, entry in appends])


def new_entries(transaction: Transaction, name: Name, place: int) -> tuple[Sequence[LogEntry], bool]:
    """Returns up to `MAX_ENTRIES` entries of a log, beginning at a place, and whether more may follow."""
    query = f"SELECT is_running FROM roost_responses WHERE {_LOG}"
    found = transaction.rows(query, *name)  # before the log, which is complete if this says so
    rest = f"WHERE {_LOG} AND number >= ? ORDER BY number LIMIT ?"
    some = EVENTS.rows(transaction, rest, *name, place, MAX_ENTRIES)
    return some, len(some) == MAX_ENTRIES or (bool(found) and bool(found[0][0]))


def last_entry(transaction: Transaction, name: Name) -> LogEntry:
    """Returns the last entry of a log without its content."""
    columns = "number, first_event, num_events, first_token, num_tokens"
    query = f"SELECT {columns} FROM roost_events WHERE {_LOG} ORDER BY number DESC LIMIT 1"
    found = transaction.rows(query, *name)
    return LogEntry(*found[0]) if found else BEFORE_FIRST


def kept_events(transaction: Transaction, name: Name) -> tuple[int, int]:
    """Returns the numbers of the first event that a log still has and of its next event; 0 and 0 if it has none."""
    query = f"SELECT first_event FROM roost_events WHERE {_LOG} ORDER BY number LIMIT 1"
    first = next((int(event) for (event,) in transaction.rows(query, *name)), 0)
    return first, last_entry(transaction, name).next_event


def entry_of(transaction: Transaction, name: Name, event: int) -> int:
    """Returns the place of the first entry that has the event of this number or a later one, by binary search.

    An index by events would find it faster, but slow down every append.
    """
    query = f"SELECT first_event + num_events FROM roost_events WHERE {_LOG} AND number >= ? ORDER BY number LIMIT 1"

    def next_event(place: int) -> int:
        found = transaction.rows(query, *name, place)
        return int(found[0][0]) if found else event + 1  # the log was deleted

    num_places = last_entry(transaction, name).number + 1
    return bisect_right(range(num_places), event, key=next_event)


def drop(transaction: Transaction, name: Name, first: int) -> None:
    """Deletes the entries of a log before a number."""
    transaction.execute(f"DELETE FROM roost_events WHERE {_LOG} AND number < ?", *name, first)


def delete(transaction: Transaction, name: Name) -> None:
    """Deletes a log."""
    transaction.execute(f"DELETE FROM roost_events WHERE {_LOG}", *name)


def pack_delta(delta: Delta) -> bytes:
    """Returns the JSON of a delta that is not the last of its choice."""
    return orjson.dumps({name: value for name in _PACKED if (value := getattr(delta, name))})


def unpack_delta(packed: bytes) -> Delta:
    """Returns the delta from the result of `pack_delta`."""
    return _DELTA.validate_python({"index": 0, **stored_json(packed)})


_POLL_S: Final = 0.1
"""Seconds between two reads of events that another replica may have written, while new events arrive."""

_MAX_POLL_S: Final = 1.0
"""Maximum seconds between two reads. The interval doubles with each read that finds nothing."""

_EVENTS_PER_TURN: Final = 32
"""Number of events after which a follower yields to the event loop. A follower may be thousands of events behind."""

MAX_FOLLOWERS: Final = 256
"""Maximum number of streams of stored responses that a tenant follows at a time, on each replica."""


class _Read(NamedTuple):
    """Result of a read of a log.

    Attributes:
      entries: Entries from a place on, up to `MAX_ENTRIES`.
      may_grow: Whether more entries may follow.
      changed: Event that the first later commit of this replica sets.
    """

    entries: Sequence[LogEntry]
    may_grow: bool
    changed: asyncio.Event


class LogFollowers:
    """Follows the logs of responses, whichever replica writes them.

    Each follower reads the log at its own pace, so that no follower waits for a slower one. Followers that wait for the
    same entry share one read.

    Args:
      database: Database with the logs.
      changed: Returns the event that this replica's next commit to a log sets.
    """

    def __init__(self, database: Database, changed: Callable[[Name], asyncio.Event]) -> None:
        self._database = database
        self._changed = changed
        self._reads: dict[tuple[Name, int], asyncio.Task[_Read]] = {}
        self._num_open: Counter[str] = Counter()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Counts a follower of the current tenant until the end of the `with` block.

        Raises:
          ApiError: 429, the tenant has reached the maximum number of followers.
        """
        owner = tenant.get()
        if self._num_open[owner] >= MAX_FOLLOWERS:
            message = f"this API key follows {MAX_FOLLOWERS} streams of background responses, which is the limit"
            raise ApiError(kinds.TOO_MANY_FOLLOWERS, f"{message}: close some of them")
        self._num_open[owner] += 1
        try:
            yield
        finally:
            self._num_open[owner] -= 1

    async def follow(self, response_id: str, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Returns the events of a response of the current tenant; see `events`.

        Raises:
          ApiError: The event is no longer kept, or the event before it does not exist yet.
          StoreUnavailableError: The database is unavailable.
        """
        key = tenant.get(), response_id
        if number or not self._database.is_shared:
            first, end = await self._database.run(lambda each: kept_events(each, key))
            if number > end:
                log = f"the last event so far has number {end - 1}" if end else "there is no event yet"
                raise bad_value("starting_after", f"{log}: send starting_after={end - 1} or less")
            if number < first:
                raise _dropped(first)
        return self.events(key, number, pause_s)

    async def events(self, key: Name, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Yields the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          ApiError: An event was dropped before this follower had it.
          StoreUnavailableError: The database was unavailable for too long.
        """
        now = asyncio.get_running_loop().time
        place = await self._database.read(partial(entry_of, name=key, event=number)) if number else 0
        latest, poll_s, silent_at = None, _POLL_S, now() + pause_s
        while latest is None or latest.may_grow:
            try:
                async with asyncio.timeout_at(silent_at):
                    latest = await asyncio.shield(self._reading(key, place, latest, poll_s))
            except TimeoutError:
                yield None
                silent_at = now() + pause_s
                continue
            entries = latest.entries
            if entries and number < entries[0].first_event:
                raise _dropped(entries[0].first_event)
            for event in events_of(entries, number):
                yield event
                number += 1
                silent_at = now() + pause_s
                if number % _EVENTS_PER_TURN == 0:
                    await asyncio.sleep(0)
            place = entries[-1].number + 1 if entries else place
            poll_s = _POLL_S if entries else min(2 * poll_s, _MAX_POLL_S)

    def _reading(self, key: Name, place: int, latest: _Read | None, poll_s: float) -> asyncio.Task[_Read]:
        """Returns the task that reads the entries from a place on, which all followers at this place share.

        Args:
          latest: Latest read of this follower, after which it waits for a change; None reads immediately.
        """
        if (task := self._reads.get((key, place))) is None:
            task = self._reads[key, place] = asyncio.create_task(self._read(key, place, latest, poll_s))
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return task

    async def _read(self, key: Name, place: int, latest: _Read | None, poll_s: float) -> _Read:
        try:
            if latest is not None and len(latest.entries) < MAX_ENTRIES:
                with suppress(TimeoutError):
                    async with asyncio.timeout(poll_s):
                        await latest.changed.wait()
            changed = self._changed(key)
            return _Read(*await self._database.read(partial(new_entries, name=key, place=place)), changed)
        finally:  # before the task is done: a follower that found it done would read it again without end
            del self._reads[key, place]


def events_of(entries: Sequence[LogEntry], number: int) -> Iterator[bytes]:
    """Yields the events that begin at a number. An event ends with an empty line, and contains no other."""
    for entry in entries:
        events = entry.events.split(b"\n\n")[:-1]
        for event in events[max(number - entry.first_event, 0) :]:
            yield event + b"\n\n"


def _dropped(first: int) -> ApiError:
    """Returns the error about an event that is no longer kept.

    Args:
      first: Number of the oldest event that is kept.
    """
    message = f"only the events from number {first} on are still kept: send starting_after={first}"
    return bad_value("starting_after", message)
