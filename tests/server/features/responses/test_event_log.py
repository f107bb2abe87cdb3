"""Followers of logs in a database: the reads that they share, their pace, and events that are no longer kept."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import hypothesis.strategies as st
import pytest
from databases import opened
from hypothesis import given
from roost.server.database.database import Database, Transaction
from roost.server.database.errors import StoreClosedError
from roost.server.errors.request_errors import ApiError
from roost.server.features.responses import event_log, response_table
from roost.server.features.responses.event_log import LogEntry, LogFollowers
from roost.server.features.responses.response_table import Append, Job, ResponseRecord
from roost.server.features.responses.routes import replay
from roost.server.storage.work import Lease
from roost.server.tenants import tenant

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
        job = Job(RECORD, "model")
        self.lease: Lease = database.run_now(lambda each: response_table.insert(each, job, "a"), writes=True)

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
        return self.database.run_now(lambda each: event_log.last_entry(each, KEY)).number + 1


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    database = opened(address)
    yield database
    database.close()


def followers_of(database: Database) -> LogFollowers:
    return LogFollowers(database, lambda _: asyncio.Event())


async def rest(follower: AsyncGenerator[bytes | None]) -> list[bytes]:
    """Returns all later events of a follower."""
    return [event async for event in follower if event is not None]


async def took(follower: AsyncGenerator[bytes | None], count: int) -> list[bytes]:
    """Returns the next events of a follower."""
    events: list[bytes] = []
    async with asyncio.timeout(60):
        while len(events) < count:
            if (event := await anext(follower)) is not None:
                events.append(event)
    return events


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places of all reads of logs."""
    places: list[int] = []
    read = event_log.new_entries

    def noted(transaction: Transaction, name: Any, place: int) -> Any:
        places.append(place)
        return read(transaction, name, place)

    monkeypatch.setattr(event_log, "new_entries", noted)
    return places


async def test_followers_of_a_response_share_what_is_read(database: Database, reads: list[int]) -> None:
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    following = [followers.events(KEY, 0, 30.0) for _ in range(5)]
    assert await asyncio.gather(*(took(each, 1) for each in following)) == [[b"old\n\n"]] * 5
    assert reads == [0]
    taking = [asyncio.create_task(took(each, 2)) for each in following]
    await asyncio.sleep(0)
    log.append(b"one\n\n", b"two\n\n")
    assert await asyncio.gather(*taking) == [[b"one\n\n", b"two\n\n"]] * 5
    log.end()
    assert await asyncio.gather(*map(rest, following)) == [[b"end\n\n"]] * 5
    assert {*reads} == {0, 1, 2}
    assert reads.count(2) == 1, "the last entry is read once for all"


async def test_followers_do_not_wait_for_a_database_that_was_closed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one is that a newer server has upgraded."""
    monkeypatch.setattr("roost.server.database.database._OUTAGE_S", math.inf)
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    follower = followers.events(KEY, 0, 30.0)
    await took(follower, 1)
    database.close()
    with pytest.raises(StoreClosedError):
        await took(follower, 1)


async def test_a_slow_follower_holds_nobody_back(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.server.features.responses.event_log._POLL_S", 0.01)
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    slow, quick = (followers.events(KEY, 0, 30.0) for _ in range(2))
    assert await took(slow, 1) == await took(quick, 1) == [b"old\n\n"]
    for number in range(20):
        log.append(b"%d\n\n" % number)
        assert await took(quick, 1) == log.events[-1:]
    log.end()
    assert await rest(slow) == log.events[1:]
    assert await rest(quick) == log.events[-1:]


async def test_a_log_is_read_only_while_it_has_followers(database: Database, reads: list[int]) -> None:
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    async with aclosing(followers.events(KEY, 0, 0.01)) as first:
        await took(first, 1)
        assert await anext(first) is None
    await asyncio.wait(list(followers._reads.values()))
    await asyncio.sleep(0)
    assert not followers._reads
    log.append(b"new\n\n")
    async with aclosing(followers.events(KEY, 1, 30.0)) as second:
        assert await took(second, 1) == [b"new\n\n"]


async def test_looks_that_find_nothing_become_rare(
    database: Database, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one doubles the time until the next, and an event begins anew."""
    monkeypatch.setattr("roost.server.features.responses.event_log._POLL_S", 0.01)
    log, began = Log(database), time.monotonic()
    log.append(b"old\n\n")
    async with aclosing(followers_of(database).events(KEY, 0, 0.6)) as following:
        await took(following, 1)
        assert await anext(following) is None
        assert len(reads) <= 2 + math.log2((time.monotonic() - began) / 0.01)
        log.append(b"new\n\n")
        assert await took(following, 1) == [b"new\n\n"]


async def test_a_log_that_is_deleted_ends_its_followers(database: Database) -> None:
    log, followers = Log(database), followers_of(database)
    log.append(b"old\n\n")
    following = followers.events(KEY, 0, 30.0)
    await took(following, 1)
    database.run_now(lambda each: response_table.delete(each, *KEY), writes=True)
    async with asyncio.timeout(60):
        assert await rest(following) == []
        assert await rest(followers.events(KEY, 3, 30.0)) == []


async def test_a_log_is_followed_from_its_next_event_at_most(database: Database) -> None:
    tenant.set(KEY[0])
    log, followers = Log(database), followers_of(database)
    with pytest.raises(ApiError, match="there is no event yet: send starting_after=-1"):
        await followers.follow("r1", 1, 30.0)
    log.append(b"a\n\n", b"b\n\n")
    await followers.follow("r1", 2, 30.0)
    with pytest.raises(ApiError, match="the last event so far has number 1: send starting_after=1 or less"):
        await followers.follow("r1", 3, 30.0)


@given(sizes=st.lists(st.integers(0, 3)), early=st.integers(0, 9), number=st.integers(0, 9))
def test_followers_get_all_from_their_number_on(sizes: list[int], early: int, number: int) -> None:
    """Followers that begin before the events, after the last one, and in between get the same."""

    async def run() -> None:
        database = opened("memory:")
        log, changed = Log(database), asyncio.Event()
        events = [[b"%d-%d\n\n" % (i, j) for j in range(size)] for i, size in enumerate(sizes)]
        followers = LogFollowers(database, lambda _: changed)
        for some in events[:early]:
            log.append(*some)
        begun = asyncio.create_task(rest(followers.events(KEY, min(number, len(log.events)), 5.0)))
        first = min(number, len(log.events))
        for some in events[early:]:
            log.append(*some)
            await asyncio.sleep(0)
        log.end()
        changed.set()
        assert await begun == await rest(followers.events(KEY, first, 5.0)) == log.events[first:]
        database.close()

    asyncio.run(run())


async def test_silence_is_reported(database: Database) -> None:
    log, followers = Log(database), followers_of(database)
    following = [followers.events(KEY, 0, 0.01) for _ in range(2)]
    assert [await anext(follower) for follower in following] == [None, None]
    log.append(b"x\n\n")
    assert [await took(follower, 1) for follower in following] == [[b"x\n\n"]] * 2


@pytest.mark.timeout(30)
async def test_a_read_that_ends_as_its_follower_gives_up_is_not_taken_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would keep the event loop for ever."""

    async def run(work: Callable[[Transaction], Any]) -> Any:
        return database.run_now(work)

    Log(database)
    followers = followers_of(database)
    monkeypatch.setattr(database, "run", run)
    follower = followers.events(KEY, 0, 0.0)
    assert [await anext(follower) for _ in range(3)] == [None] * 3


async def test_a_client_that_is_too_slow_is_told_so(database: Database) -> None:
    """The log in memory keeps the newest events only."""
    log, followers = Log(database), followers_of(database)
    log.append(b"one\n\n")
    stream = replay(followers.events(KEY, 0, 30.0), 0)
    assert await anext(stream) == b"one\n\n"
    for event in (b"two\n\n", b"six\n\n"):
        log.append(event)
    database.run_now(lambda each: event_log.drop(each, KEY, 2), writes=True)
    last = await anext(stream)
    assert last.startswith(b"event: error\n")
    assert b'"sequence_number":0' in last, "of the last event that it got"
    assert b"send starting_after=2" in last
    assert [event async for event in stream] == []


async def test_a_follower_with_much_to_catch_up_lets_others_have_their_turns(database: Database) -> None:
    log = Log(database)
    log.append(*[b"x\n\n"] * 3200)
    following = followers_of(database).events(KEY, 0, 30.0)
    await took(following, 1)
    taking = asyncio.create_task(took(following, 3199))
    num_turns = 0
    while not taking.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert num_turns >= 100
