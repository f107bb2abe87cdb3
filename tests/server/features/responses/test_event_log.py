"""Followers of logs in a database: what they share, what each reads by itself, and what is no longer kept."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import hypothesis.strategies as st
import pytest
from databases import opened
from hypothesis import given
from query_plans import scans_of
from roost.server.database.database import Database, Transaction
from roost.server.database.errors import StoreClosedError
from roost.server.errors.request_errors import ApiError
from roost.server.features.responses import event_log, response_table
from roost.server.features.responses.event_log import EventLog, LogEntry, LogFollowers
from roost.server.features.responses.response_table import Append, Job, ResponseRecord
from roost.server.features.responses.routes import replay
from roost.server.storage.work import Lease

KEY = "tenant", "r1"
RECORD = ResponseRecord(*KEY, b"{}", b"[]", b"[]", True, True, True)


class Log:
    """A log that another replica writes.

    Attributes:
      lease: Lease of its owner.
      events: Its events so far.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.events: list[bytes] = []
        job = Job("model", b"{}", b"")
        self.lease: Lease = database.run_now(lambda each: response_table.insert(each, RECORD, job, "a"), writes=True)

    def append(self, *events: bytes) -> None:
        entry = LogEntry(self._num_entries(), len(self.events), len(events), 0, 0, b"", b"".join(events))
        write = [Append(self.lease, entry, 0)]
        self.database.run_now(lambda each: response_table.append_all(each, write), writes=True)
        self.events += events

    def end(self) -> None:
        entry = LogEntry(self._num_entries(), len(self.events), 1, 0, 0, b"", b"end\n\n")
        end = response_table.end
        self.database.run_now(lambda each: end(each, self.lease, entry, b"{}", b"[]", 0), writes=True)
        self.events.append(b"end\n\n")

    def _num_entries(self) -> int:
        return self.database.run_now(lambda each: event_log.end_of_log(each, KEY)).num_entries


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    database = opened(address)
    yield database
    database.close()


def followers_of(database: Database) -> LogFollowers:
    return LogFollowers(database, lambda _: None)


async def took(follower: AsyncGenerator[bytes | None], count: int) -> list[bytes]:
    """Returns the next events of a follower."""
    events: list[bytes] = []
    async with asyncio.timeout(60):
        while len(events) < count:
            if (event := await anext(follower)) is not None:
                events.append(event)
    return events


async def test_followers_of_a_response_share_what_is_read(database: Database) -> None:
    """The very same bytes, and so one reading of them."""
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    following = [followers.follow(KEY, 0, 30.0) for _ in range(5)]
    assert [await took(each, 1) for each in following] == [[b"old\n\n"]] * 5
    taking = [asyncio.create_task(took(each, 2)) for each in following]
    await asyncio.sleep(0)
    log.append(b"one\n\n", b"two\n\n")
    got = [await each for each in taking]
    assert got == [[b"one\n\n", b"two\n\n"]] * 5
    assert len({id(event) for events in got for event in events}) == 2
    log.end()
    for each in following:
        assert [event async for event in each if event is not None] == [b"end\n\n"]


async def test_followers_do_not_wait_for_a_database_that_was_closed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is that a newer server has upgraded."""
    monkeypatch.setattr("roost.server.features.responses.event_log._OUTAGE_S", math.inf)
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    follower = followers.follow(KEY, 0, 30.0)
    await took(follower, 1)
    database.close()
    with pytest.raises(StoreClosedError):
        await took(follower, 1)


async def test_a_slow_follower_holds_nobody_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds in the database what is no longer in memory."""
    monkeypatch.setattr("roost.server.features.responses.event_log._TAIL_BYTES", 200)
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    slow, quick = (followers.follow(KEY, 0, 30.0) for _ in range(2))
    assert await took(slow, 1) == await took(quick, 1) == [b"old\n\n"]
    waiting = asyncio.create_task(took(slow, 1))
    for number in range(20):
        log.append(b"%d\n\n" % number)
        await took(quick, 1)
    (tail,) = followers._tails.values()
    assert tail.num_bytes <= 200
    assert await waiting == log.events[1:2]
    log.end()
    assert [event async for event in slow if event is not None] == log.events[2:]
    assert [event async for event in quick if event is not None] == log.events[-1:]


async def test_a_log_is_read_only_while_it_has_followers(database: Database) -> None:
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    async with aclosing(followers.follow(KEY, 0, 30.0)) as first:
        await took(first, 1)
        (tail,) = followers._tails.values()
    assert not followers._tails
    await asyncio.wait([tail.reading])
    log.append(b"new\n\n")
    async with aclosing(followers.follow(KEY, 1, 30.0)) as second:
        assert await took(second, 1) == [b"new\n\n"]


async def test_looks_that_find_nothing_become_rare(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one doubles the time until the next, and an event begins anew."""
    monkeypatch.setattr("roost.server.features.responses.event_log._POLL_S", 0.01)
    num_looks, follow = 0, event_log.new_entries

    def counted(transaction: Transaction, **place: Any) -> Any:
        nonlocal num_looks
        num_looks += 1
        return follow(transaction, **place)

    monkeypatch.setattr(event_log, "new_entries", counted)
    log, began = Log(database), time.monotonic()
    log.append(b"old\n\n")
    async with aclosing(followers_of(database).follow(KEY, 0, 0.6)) as following:
        await took(following, 1)
        assert await anext(following) is None
        assert num_looks <= 2 + math.log2((time.monotonic() - began) / 0.01)
        log.append(b"new\n\n")
        assert await took(following, 1) == [b"new\n\n"]


async def test_a_log_that_is_deleted_ends_its_followers(database: Database) -> None:
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    following = followers.follow(KEY, 0, 30.0)
    await took(following, 1)
    database.run_now(lambda each: response_table.delete(each, *KEY), writes=True)
    async with asyncio.timeout(60):
        assert [event async for event in following if event is not None] == []
        assert [event async for event in followers.follow(KEY, 3, 30.0)] == []


async def test_a_log_is_followed_from_its_next_event_at_most(database: Database) -> None:
    log, followers = Log(database), followers_of(database)
    with pytest.raises(ApiError, match="there is no event yet: send starting_after=-1"):
        await followers.check(KEY, 1)
    log.append(b"a\n\n", b"b\n\n")
    await followers.check(KEY, 2)
    with pytest.raises(ApiError, match="the last event so far has number 1: send starting_after=1 or less"):
        await followers.check(KEY, 3)


def test_no_statement_scans_a_log(address: str) -> None:
    database = opened(address)
    log = Log(database)
    log.append(b"a\n\n")
    assert scans_of(database, lambda each: event_log.new_entries(each, KEY, 0)) == set()
    assert scans_of(database, lambda each: event_log.end_of_log(each, KEY)) == set()
    assert scans_of(database, lambda each: event_log.entry_of(each, KEY, 1)) == set()
    database.close()


EVENTS = [b"event: x\ndata: {}\n\n", b"yy", b"z"]


EVENT_BYTES = 41
"""Memory of an event beside its own bytes."""


def filled(max_bytes: int = 1000) -> EventLog:
    log = EventLog(max_bytes)
    for event in EVENTS:
        log.append(event)
    log.close()
    return log


async def followed(log: EventLog, number: int = 0) -> list[bytes]:
    return [event async for event in log.follow(number, 5.0) if event is not None]


@given(sizes=st.lists(st.integers(1, 9)), early=st.integers(0, 9), number=st.integers(0, 9))
def test_followers_get_all_from_their_number_on(sizes: list[int], early: int, number: int) -> None:
    """Those that were there before the events, those that came after the last, and those in between."""

    async def run() -> None:
        events, log = [bytes([i]) * size for i, size in enumerate(sizes)], EventLog()
        for event in events[:early]:
            log.append(event)
        followers = [asyncio.create_task(followed(log, number)) for _ in range(2)]
        for event in events[early:]:
            log.append(event)
            await asyncio.sleep(0)
        log.close()
        for got in (await followers[0], await followers[1], await followed(log, number)):
            assert got == events[number:]
        assert log.num_bytes == sum(EVENT_BYTES + size for size in sizes)

    asyncio.run(run())


async def test_the_oldest_events_make_room() -> None:
    log = filled(max_bytes=2 * EVENT_BYTES + 3)
    assert log.num_bytes == 2 * EVENT_BYTES + 3
    assert await followed(log, 1) == EVENTS[1:]
    with pytest.raises(ApiError, match="starting_after=1"):
        await followed(log, 0)


async def test_the_newest_event_stays_however_long_it_is() -> None:
    log = EventLog(max_bytes=1)
    for event in reversed(EVENTS):
        log.append(event)
    log.close()
    assert await followed(log, 2) == EVENTS[:1]


async def test_small_events_count_with_what_they_take_beside_their_bytes() -> None:
    log = EventLog(max_bytes=41_000)
    for _ in range(10_000):
        log.append(b"x")
    log.close()
    assert len(await followed(log, 10_000 - 41_000 // 42)) == 41_000 // 42
    with pytest.raises(ApiError):
        await followed(log, 10_000 - 41_000 // 42 - 1)


async def test_silence_is_told_of() -> None:
    log = EventLog()
    followers = [log.follow(0, 0.01) for _ in range(2)]
    assert [await anext(follower) for follower in followers] == [None, None]
    log.append(b"x")
    assert [await anext(follower) for follower in followers] == [b"x", b"x"]


async def test_a_client_that_is_too_slow_is_told_so() -> None:
    log = EventLog(max_bytes=60)
    stream = replay(log.follow(0, 1.0), 0)
    log.append(b"one")
    assert await anext(stream) == b"one"
    for event in (b"two", b"six"):
        log.append(event)
    last = await anext(stream)
    assert last.startswith(b"event: error\n")
    assert b'"sequence_number":0' in last, "of the last event that it got"
    assert [event async for event in stream] == []


async def test_a_follower_with_much_to_catch_up_lets_others_have_their_turns() -> None:
    log = EventLog()
    for _ in range(3200):
        log.append(b"x")
    log.close()
    following = asyncio.create_task(followed(log))
    num_turns = 0
    while not following.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert len(await following) == 3200
    assert num_turns >= 100
