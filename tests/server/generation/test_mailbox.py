"""Tests of the mailbox: order, readers that are cancelled, and timeouts."""

import asyncio

import pytest
from roost.server.generation.generation import Mailbox


async def test_items_come_in_order_whether_or_not_a_reader_waits() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(1)
    mailbox.put(2)
    assert len(mailbox) == 2
    assert [await mailbox.get(None), await mailbox.get(None)] == [1, 2]
    waiting = asyncio.create_task(mailbox.get(None))
    await asyncio.sleep(0)
    mailbox.put(3)
    mailbox.put(4)
    assert [await waiting, await mailbox.get(None)] == [3, 4]
    assert len(mailbox) == 0


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_a_reader_that_is_cancelled_loses_nothing(is_waiting: bool) -> None:
    mailbox: Mailbox[int] = Mailbox()
    if not is_waiting:
        mailbox.put(1)
    waiting = asyncio.create_task(mailbox.get(None))
    await asyncio.sleep(0)
    if is_waiting:
        mailbox.put(1)
    waiting.cancel()  # when it has been woken, and before it takes anything
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await mailbox.get(None) == 1


async def test_the_timeout_begins_anew_with_each_item() -> None:
    mailbox: Mailbox[int] = Mailbox()
    loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
    loop.call_later(0.06, mailbox.put, 1)
    assert await mailbox.get(0.1) == 1
    assert await mailbox.get(0.1) is None
    assert loop.time() - began >= 0.06 + 0.1 - 0.001
    mailbox.put(2)
    assert await mailbox.get(0.1) == 2
    mailbox.close()


async def test_a_timer_that_fires_without_a_reader_wakes_nobody() -> None:
    mailbox: Mailbox[int] = Mailbox()
    mailbox.put(0)
    loop = asyncio.get_running_loop()
    loop.call_soon(mailbox.put, 1)
    assert [await mailbox.get(0.01) for _ in range(2)] == [0, 1]
    await asyncio.sleep(0.02)
    loop.call_soon(mailbox.put, 2)
    assert await mailbox.get(0.01) == 2
    mailbox.close()


async def test_without_a_timeout_a_reader_waits_forever() -> None:
    mailbox: Mailbox[int] = Mailbox()
    waiting = asyncio.create_task(mailbox.get(None))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    assert mailbox.has_reader
    mailbox.put(1)
    assert await waiting == 1
    assert not mailbox.has_reader
