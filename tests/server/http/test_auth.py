"""API keys and their tenants, the admin port, and origins of web pages."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import client_of, until
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys, is_shared_without_keys, load_access, reload_keys
from roost.server.http.origins import AllowedOrigins, BrowserPolicy
from roost.server.settings import load_settings

KEYS = ApiKeys(["alice:a", "bob:b"])


@pytest.fixture
async def shared(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(service, Access(KEYS))) as client:
        yield client


def key_of(owner: str) -> dict[str, str]:
    return {"authorization": f"Bearer {owner[0]}"}


async def respond(client: httpx.AsyncClient, owner: str, **fields: Any) -> httpx.Response:
    body = {"input": "a", "max_output_tokens": 2, **fields}
    return await client.post("/v1/responses", json=body, headers=key_of(owner))


async def test_engine_requests_carry_their_tenant(
    shared: httpx.AsyncClient, client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for owner in ("alice", "bob"):
        await shared.post("/v1/completions", json={"prompt": "a", "n": 2}, headers=key_of(owner))
    await client.post("/v1/completions", json={"prompt": "a"})
    assert [request.tenant for request in engine.requests] == ["alice", "alice", "bob", "bob", ""]


async def test_stored_response_is_visible_to_its_tenant_only(shared: httpx.AsyncClient) -> None:
    response_id = (await respond(shared, "alice")).json()["id"]
    path = f"/v1/responses/{response_id}"
    assert (await shared.get(path, headers=key_of("bob"))).status_code == 404
    assert (await shared.delete(path, headers=key_of("bob"))).status_code == 404
    refused = await respond(shared, "bob", previous_response_id=response_id)
    assert refused.json()["error"]["code"] == "previous_response_not_found"
    assert (await respond(shared, "alice", previous_response_id=response_id)).status_code == 200
    assert (await shared.get(path, headers=key_of("alice"))).status_code == 200


async def test_abort_does_not_reach_another_tenants_requests(shared: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.gate.clear()
    response_id = (await respond(shared, "alice", background=True)).json()["id"]
    headers = {**key_of("alice"), "x-request-id": "mine"}
    running = asyncio.create_task(shared.post("/v1/completions", json={"prompt": "a"}, headers=headers))
    await until(lambda: len(engine.running) == 2)
    for any_id in ("mine", response_id):
        response = await shared.post("/abort_request", json={"request_id": any_id}, headers=key_of("bob"))
        assert response.json() == {"aborted": 0}
    assert (await shared.delete(f"/v1/responses/{response_id}", headers=key_of("bob"))).status_code == 404
    assert len(engine.running) == 2
    engine.gate.set()
    assert (await running).status_code == 200
    await until(lambda: not engine.running)


async def test_admin_port_serves_the_metrics(service: Service) -> None:
    access = Access(KEYS, admin_port=9000)
    async with (
        client_of(create_app(service, access), "http://r:8000") as public,
        client_of(create_app(service, access), "http://r:9000") as own,
    ):
        expected = {"/metrics": (404, 200), "/health": (200, 200), "/health/ready": (200, 200), "/": (200, 404)}
        for path, statuses in expected.items():
            assert ((await public.get(path)).status_code, (await own.get(path)).status_code) == statuses, path
        headers = key_of("alice")
        assert (await public.get("/v1/models", headers=headers)).status_code == 200
        assert (await own.get("/v1/models", headers=headers)).status_code == 404


@pytest.mark.parametrize(
    ("settings", "on_loopback", "is_shared"),
    [
        ({}, True, False),
        ({}, False, True),
        ({"uds": "roost.sock"}, True, True),
        ({"root_path": "/llm"}, True, True),
        ({"forwarded_allow_ips": ["10.0.0.5"]}, True, True),
        ({"allow_host": ["chat.example.org"]}, True, True),
        ({"api_key": ["alice:a"], "allow_host": ["chat.example.org"]}, False, False),
    ],
    ids=str,
)
def test_a_server_without_keys_is_shared_if_others_may_reach_it(
    settings: dict[str, Any], on_loopback: bool, is_shared: bool
) -> None:
    loaded = load_settings(settings)
    access = load_access(loaded, None, on_loopback=on_loopback)
    assert is_shared_without_keys(access, loaded, on_loopback=on_loopback) == is_shared


async def test_unknown_origin_gets_no_cors_headers(client: httpx.AsyncClient) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = await client.options("/v1/chat/completions", headers=headers)
    assert not any(name.startswith("access-control-") for name in preflight.headers)
    response = await client.get("/v1/models", headers=headers)
    assert not any(name.startswith("access-control") for name in [*preflight.headers, *response.headers])


async def test_allowed_origin_gets_cors_headers(service: Service) -> None:
    async with client_of(
        create_app(service, Access(KEYS, browsers=BrowserPolicy(AllowedOrigins(["https://good.example"]))))
    ) as client:
        headers = {
            "origin": "https://good.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type",
        }
        preflight = await client.options("/v1/chat/completions", headers=headers)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://good.example"
        assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
        response = await client.get("/v1/models", headers={**headers, **key_of("alice")})
        assert response.headers["access-control-allow-origin"] == "https://good.example"
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        other = await client.get("/v1/models", headers={"origin": "https://evil.example", **key_of("alice")})
        assert "access-control-allow-origin" not in other.headers


@pytest.fixture
async def locked(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Client of a server whose only key is "sesame"."""
    async with client_of(create_app(service, Access(ApiKeys(["sesame"])))) as client:
        yield client


@pytest.mark.parametrize(
    "given", [None, "", "sesame", "Bearer", "Bearer ", "Bearer sesam", "Basic sesame", "Bearer \u00e9"]
)
async def test_request_without_a_known_key_is_refused(locked: httpx.AsyncClient, given: str | None) -> None:
    headers = {} if given is None else {b"authorization": given.encode()}
    for path in ("/v1/models", "/version", "/nowhere"):
        response = await locked.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]


async def test_removed_key_is_refused_and_its_running_requests_end_as_usual(
    service: Service, engine: FakeEngine, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text("alice:a\n")
    settings = load_settings({"api_key_file": str(path)})
    access = load_access(settings, None)
    async with client_of(create_app(service, access)) as client:
        engine.gate.clear()
        body = {"prompt": "a", "max_tokens": 3, "stream": True}
        running = asyncio.create_task(client.post("/v1/completions", json=body, headers=key_of("alice")))
        await until(lambda: engine.running)
        path.write_text("bob:b\n")
        reload_keys(access, settings)
        statuses = [(await client.get("/v1/models", headers=key_of(name))).status_code for name in ("alice", "bob")]
        assert statuses == [401, 200]
        engine.gate.set()
        assert (await running).text.endswith("data: [DONE]\n\n")


async def test_probes_need_no_key(locked: httpx.AsyncClient) -> None:
    for path in ("/health", "/health/ready", "/metrics"):
        assert (await locked.get(path)).status_code == 200


async def test_key_in_the_header_of_anthropics_clients(locked: httpx.AsyncClient) -> None:
    assert (await locked.get("/v1/models", headers={"x-api-key": "sesame"})).status_code == 200
    both = {"x-api-key": "sesame", "authorization": "Bearer wrong"}
    assert (await locked.get("/v1/models", headers=both)).status_code == 200
    assert (await locked.get("/v1/models", headers={"x-api-key": "sesam"})).status_code == 401
