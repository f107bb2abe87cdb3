"""A log of events is followed from anywhere, and says so where it cannot be."""

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import given
from roost.server.errors.request_errors import ApiError
from roost.server.features.responses.log_followers import EventLog
from roost.server.features.responses.routes import replay

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
