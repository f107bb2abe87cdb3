"""A client's disconnect cancels a block of work, and nothing else looks like one."""

import asyncio

import pytest
from roost.server.http.responses import until_disconnect
from starlette.requests import ClientDisconnect
from starlette.types import Message


class Client:
    """ASGI channel of a client that disconnects when it is told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


async def test_a_disconnect_cancels_the_block() -> None:
    client, has_ended = Client(), asyncio.Event()

    async def work() -> None:
        try:
            client.gone.set()
            await asyncio.Event().wait()
        finally:
            has_ended.set()

    with pytest.raises(ClientDisconnect):
        async with until_disconnect(client.receive):
            await work()
    assert has_ended.is_set()
    assert not current_task().cancelling()


async def test_a_block_that_ends_is_not_cancelled_by_a_later_disconnect() -> None:
    """The disconnect is noticed while the block ends, too."""
    for num_turns in range(6):
        client = Client()
        async with until_disconnect(client.receive):
            await asyncio.sleep(0)
            client.gone.set()
        for _ in range(num_turns):
            await asyncio.sleep(0)
        assert not current_task().cancelling()


async def test_a_timeout_within_the_block_stays_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with until_disconnect(Client().receive), asyncio.timeout(0):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), until_disconnect(Client().receive):
            await asyncio.Event().wait()


async def test_another_cancellation_is_not_a_disconnect() -> None:
    client = Client()

    async def serve() -> None:
        async with until_disconnect(client.receive):
            await asyncio.Event().wait()

    for disconnects in (False, True):
        task = asyncio.create_task(serve())
        await asyncio.sleep(0)  # it waits
        if disconnects:
            client.gone.set()
        task.cancel()
        with pytest.raises((asyncio.CancelledError, ClientDisconnect) if disconnects else asyncio.CancelledError):
            await task
        assert task.done()


def current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task
