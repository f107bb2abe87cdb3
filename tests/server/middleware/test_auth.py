"""Tenants, the operator's key and port, and other people's web pages."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import until
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.middleware.api_keys import ApiKeys
from roost.server.middleware.auth import Access

KEYS = ApiKeys(["alice:a", "bob:b"])


def client_of(service: Service, access: Access, url: str = "http://roost") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service, access)), base_url=url)


@pytest.fixture
async def shared(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(service, Access(KEYS)) as client:
        yield client


def as_(owner: str) -> dict[str, str]:
    return {"authorization": f"Bearer {owner[0]}"}


async def respond(client: httpx.AsyncClient, owner: str, **fields: Any) -> httpx.Response:
    body = {"input": "a", "max_output_tokens": 2, **fields}
    return await client.post("/v1/responses", json=body, headers=as_(owner))


async def test_the_engine_learns_whose_a_request_is(
    shared: httpx.AsyncClient, client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for owner in ("alice", "bob"):
        await shared.post("/v1/completions", json={"prompt": "a", "n": 2}, headers=as_(owner))
    await client.post("/v1/completions", json={"prompt": "a"})
    assert [request.tenant for request in engine.requests] == ["alice", "alice", "bob", "bob", ""]


async def test_a_stored_response_is_its_owners_alone(shared: httpx.AsyncClient) -> None:
    response_id = (await respond(shared, "alice")).json()["id"]
    path = f"/v1/responses/{response_id}"
    assert (await shared.get(path, headers=as_("bob"))).status_code == 404
    assert (await shared.delete(path, headers=as_("bob"))).status_code == 404
    refused = await respond(shared, "bob", previous_response_id=response_id)
    assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert (await respond(shared, "alice", previous_response_id=response_id)).status_code == 200
    assert (await shared.get(path, headers=as_("alice"))).status_code == 200


async def test_nobody_ends_another_tenants_requests(shared: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.gate.clear()
    response_id = (await respond(shared, "alice", background=True)).json()["id"]
    headers = {**as_("alice"), "x-request-id": "mine"}
    asking = asyncio.create_task(shared.post("/v1/completions", json={"prompt": "a"}, headers=headers))
    await until(lambda: len(engine.running) == 2)
    for any_id in ("mine", response_id):
        answer = await shared.post("/abort_request", json={"request_id": any_id}, headers=as_("bob"))
        assert answer.json() == {"aborted": 0}
    assert (await shared.delete(f"/v1/responses/{response_id}", headers=as_("bob"))).status_code == 404
    assert len(engine.running) == 2
    engine.gate.set()
    assert (await asking).status_code == 200
    await until(lambda: not engine.running)


async def test_the_operators_port_has_the_metrics(service: Service) -> None:
    access = Access(KEYS, admin_port=9000)
    async with (
        client_of(service, access, "http://r:8000") as public,
        client_of(service, access, "http://r:9000") as own,
    ):
        expected = {"/metrics": (404, 200), "/health": (200, 200), "/health/ready": (200, 200), "/": (200, 404)}
        for path, statuses in expected.items():
            assert ((await public.get(path)).status_code, (await own.get(path)).status_code) == statuses, path
        headers = as_("alice")
        assert (await public.get("/v1/models", headers=headers)).status_code == 200
        assert (await own.get("/v1/models", headers=headers)).status_code == 404


async def test_other_peoples_pages_are_kept_out(client: httpx.AsyncClient) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    asked = await client.options("/v1/chat/completions", headers=headers)
    assert not any(name.startswith("access-control-") for name in asked.headers)
    answer = await client.get("/v1/models", headers=headers)
    assert not any(name.startswith("access-control") for name in [*asked.headers, *answer.headers])


async def test_a_page_may_be_let_in(service: Service) -> None:
    async with client_of(service, Access(KEYS, allowed_origins=("https://good.example",))) as client:
        headers = {
            "origin": "https://good.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type",
        }
        asked = await client.options("/v1/chat/completions", headers=headers)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "https://good.example"
        assert asked.headers["access-control-allow-headers"] == "authorization, content-type"
        answer = await client.get("/v1/models", headers={**headers, **as_("alice")})
        assert answer.headers["access-control-allow-origin"] == "https://good.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        other = await client.get("/v1/models", headers={"origin": "https://evil.example", **as_("alice")})
        assert "access-control-allow-origin" not in other.headers
