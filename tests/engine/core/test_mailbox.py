"""A mailbox: order, readers who give up, and readers who have patience for a while only."""

import asyncio

import pytest
from roost.engine import Mailbox


async def test_items_come_in_order_whether_somebody_waits_or_not() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.put(2)
    assert len(mailbox) == 2
    assert [await mailbox.get_within(None), await mailbox.get_within(None)] == [1, 2]
    waiting = asyncio.create_task(mailbox.get_within(None))
    await asyncio.sleep(0)
    mailbox.put(3)
    mailbox.put(4)
    assert [await waiting, await mailbox.get_within(None)] == [3, 4]
    assert len(mailbox) == 0


async def test_all_items_can_be_taken_at_once() -> None:
    mailbox: Mailbox[int] = Mailbox()
    waiting = asyncio.create_task(mailbox.get_all())
    await asyncio.sleep(0)
    for item in (1, 2, 3):
        mailbox.put(item)
    assert await waiting == [1, 2, 3]
    assert len(mailbox) == 0
    mailbox.put(4)
    assert await mailbox.get_all() == [4]


async def test_a_reader_who_gives_up_loses_nothing() -> None:
    mailbox: Mailbox[int] = Mailbox()
    waiting = asyncio.create_task(mailbox.get_all())
    await asyncio.sleep(0)
    mailbox.put(1)
    waiting.cancel()  # when it has been woken, and before it takes anything
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await mailbox.get_all() == [1]


async def test_patience_begins_anew_with_each_item() -> None:
    mailbox: Mailbox[int] = Mailbox()
    loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    loop.call_later(0.06, mailbox.put, 1)
    assert await mailbox.get_within(0.1) == 1
    assert await mailbox.get_within(0.1) is None
    assert loop.time() - began >= 0.06 + 0.1 - 0.001
    mailbox.put(2)
    assert await mailbox.get_within(0.1) == 2
    mailbox.close()


async def test_a_timer_that_rings_while_nobody_waits_wakes_nobody() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(0)
    loop = asyncio.get_running_loop()
    loop.call_soon(mailbox.put, 1)
    assert [await mailbox.get_within(0.01) for _ in range(2)] == [0, 1]
    await asyncio.sleep(0.02)
    loop.call_soon(mailbox.put, 2)
    assert await mailbox.get_within(0.01) == 2
    mailbox.close()


async def test_without_a_limit_a_reader_waits_for_ever() -> None:
    mailbox: Mailbox[int] = Mailbox()
    waiting = asyncio.create_task(mailbox.get_within(None))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    mailbox.put(1)
    assert await waiting == 1
