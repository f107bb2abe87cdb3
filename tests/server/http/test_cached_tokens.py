"""Cached tokens in the responses of each API, and the tenants that share cached states."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import client_of
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys

HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 2},
    "/v1/completions": {"prompt": "abc", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": HI, "max_tokens": 2},
    "/generate": {"token_ids": [5, 6, 7], "max_tokens": 2},
}


async def ask(client: httpx.AsyncClient, path: str, **fields: Any) -> Any:
    response = await client.post(path, json={**BODIES[path], **fields})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
async def test_openais_usage(client: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    engine.num_cached = 2
    usage = (await ask(client, path))["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}
    usage = (await ask(client, path, n=3))["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 2}, "a prompt counts once"


async def test_usage_of_a_stream_and_of_responses(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.num_cached = 2
    assert (await ask(client, "/v1/responses"))["usage"]["input_tokens_details"]["cached_tokens"] == 2
    options = {"include_usage": True}
    body = {**BODIES["/v1/chat/completions"], "stream": True, "stream_options": options}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.text.count('"cached_tokens":2') == 1


async def test_anthropics_usage_tells_what_was_read_apart(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    whole = (await ask(client, "/v1/messages"))["usage"]
    engine.num_cached = 2
    usage = (await ask(client, "/v1/messages"))["usage"]
    assert usage["cache_read_input_tokens"] == 2
    assert usage["input_tokens"] == whole["input_tokens"] - 2
    response = await client.post("/v1/messages", json={**BODIES["/v1/messages"], "stream": True})
    assert response.text.count('"cache_read_input_tokens":2') == 1


@pytest.mark.parametrize("path", BODIES)
async def test_salts(client: httpx.AsyncClient, engine: FakeEngine, path: str) -> None:
    for salt in ({}, {"cache_salt": "a"}, {"cache_salt": None}):
        await ask(client, path, **salt)
    none, a, null = (request.cache_salt for request in engine.requests)
    assert none == null != a
    response = await client.post(path, json={**BODIES[path], "cache_salt": "x" * 257})
    assert response.status_code == 400
    assert "cache_salt" in response.text


async def test_keys_keep_tenants_apart_if_asked_to(service: Service, engine: FakeEngine) -> None:
    """By either header; a client cannot put another's name into its salt."""
    access = Access(ApiKeys(["one:11", "two:22"]))
    headers = [{"authorization": "Bearer 11"}, {"x-api-key": "11"}, {"x-api-key": "22"}]
    for by_key in (True, False):
        async with client_of(create_app(replace(service, salt_by_key=by_key), access)) as client:
            for each in headers:
                response = await client.post("/generate", json=BODIES["/generate"], headers=each)
                assert response.status_code == 200
    one, same, two, *others = (request.cache_salt for request in engine.requests)
    assert one == same != two
    assert len(set(others)) == 1
