"""Limits on the size of one body and of all bodies together."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fake_server import client_of, limited, until
from roost.server.app import create_app
from roost.server.generation.service import Service

JSON = {"content-type": "application/json"}


@pytest.fixture
async def small(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Client of a server that accepts bodies of 1,000 bytes."""
    async with client_of(create_app(limited(service, 1000))) as client:
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
    assert (await small.post("/nowhere", content=content, headers=JSON)).status_code == 413


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
