"""Limits on the size of one body and of all bodies together, and disconnects."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fake_server import until
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.middleware.request_body import until_disconnect
from starlette.requests import ClientDisconnect
from starlette.types import Message

JSON = {"content-type": "application/json"}


@pytest.fixture
async def small(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Client of a server that accepts bodies of 1,000 bytes."""
    transport = httpx.ASGITransport(create_app(service, max_body_bytes=1000))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client


async def chunked(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100):
        yield data[start : start + 100]


async def test_body_over_the_maximum_size_is_refused(small: httpx.AsyncClient) -> None:
    for num_bytes, status in ((1000, 200), (1001, 413)):
        content = b'{"prompt": ""}'.ljust(num_bytes)
        for body in (content, chunked(content)):
            response = await small.post("/v1/completions", content=body, headers=JSON)
            assert response.status_code == status
            assert status == 200 or response.json()["error"]["code"] == "request_too_large"


async def test_bodies_over_the_shared_budget_are_refused(small: httpx.AsyncClient) -> None:
    """The budget has room for 32 bodies of the maximum size."""
    arrive = asyncio.Event()
    num_begun = 0

    async def slow() -> AsyncIterator[bytes]:
        nonlocal num_begun
        yield b'{"prompt": ""'.ljust(998)
        num_begun += 1
        await arrive.wait()
        yield b" }"

    bodies = [asyncio.create_task(small.post("/v1/completions", content=slow(), headers=JSON)) for _ in range(32)]
    await until(lambda: num_begun == 32)
    refused = await small.post("/v1/completions", content=b'{"prompt": ""}'.ljust(600), headers=JSON)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"
    arrive.set()
    assert {response.status_code for response in await asyncio.gather(*bodies)} == {200}
    again = await small.post("/v1/completions", content=b'{"prompt": ""}'.ljust(600), headers=JSON)
    assert again.status_code == 200


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
        async with until_disconnect(Client().receive), asyncio.timeout(0.01):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), until_disconnect(Client().receive):
            await asyncio.Event().wait()


async def test_another_cancellation_is_not_a_disconnect() -> None:
    client = Client()

    async def serve() -> None:
        async with until_disconnect(client.receive):
            await asyncio.Event().wait()

    for disconnects in (False, True):
        task = asyncio.create_task(serve())
        await asyncio.sleep(0.01)
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
