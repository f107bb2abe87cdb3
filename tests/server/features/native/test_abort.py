"""Aborting another request by each of its ids."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import live, until
from roost.server.generation.service import Service

ENDLESS: dict[str, Any] = {"prompt": "a", "max_tokens": 1_000_000, "ignore_eos": True}


async def abort(client: httpx.AsyncClient, request_id: str) -> int:
    response = await client.post("/abort_request", json={"request_id": request_id})
    assert response.status_code == 200, response.text
    return response.json()["aborted"]


async def test_a_stream_is_aborted_by_the_id_in_its_chunks(service: Service, engine: FakeEngine) -> None:
    body = {**ENDLESS, "n": 3, "stream": True}
    async with live(service) as client, client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.aiter_lines()
        answer_id = json.loads((await anext(lines)).removeprefix("data: "))["id"]
        await until(lambda: len(engine.running) == 3)
        assert await abort(client, answer_id) == 3
        assert await abort(client, answer_id) == 0
        *_, last = [line async for line in lines if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_aborted"
    assert not engine.running


async def test_a_whole_answer_is_aborted_by_the_clients_own_id(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Two requests may have one id; both end."""
    posts = [client.post("/v1/completions", json=ENDLESS, headers={"x-request-id": "mine"}) for _ in range(2)]
    waiting = [asyncio.create_task(post) for post in posts]
    await until(lambda: len(engine.running) == 2)
    assert await abort(client, "mine") == 2
    for response in await asyncio.gather(*waiting):
        assert (response.status_code, response.json()["error"]["code"]) == (409, "request_aborted")
        assert response.headers["x-should-retry"] == "false"
    assert not engine.running


async def test_a_choice_that_has_ended_is_not_alive(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.gate.clear()
    headers = {"x-request-id": "mine"}
    waiting = asyncio.create_task(client.post("/v1/completions", json={"prompt": ["a", "b"]}, headers=headers))
    await until(lambda: len(engine.running) == 2)
    engine.gate.set()
    assert (await waiting).status_code == 200
    assert await abort(client, "mine") == 0


async def test_unknown_ids_are_no_error(client: httpx.AsyncClient, service: Service) -> None:
    assert await abort(client, "chatcmpl-nobody") == 0
    assert service.tracked.abort("chatcmpl-nobody") == 0


@pytest.mark.parametrize("body", [{}, {"request_id": 5}, {"request_id": ""}])
async def test_an_id_is_needed(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await client.post("/abort_request", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "request_id")
