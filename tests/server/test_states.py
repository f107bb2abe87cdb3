"""`/v1/states`: who may see what, what is said of it, and how requests go on from it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_engine import STATE_FORMAT, FakeEngine
from roost.engine import CacheStats, EngineStats, SavedState
from roost.server.access import Access
from roost.server.app import create_app
from roost.server.keys import ApiKeys
from roost.server.service import Service

LONG = [5 + i % 20 for i in range(150)]


async def say(client: httpx.AsyncClient, token_ids: list[int], **fields: Any) -> Any:
    response = await client.post("/generate", json={"token_ids": token_ids, "max_tokens": 2, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def save(client: httpx.AsyncClient, token_ids: list[int] = LONG, **fields: Any) -> Any:
    answer = await say(client, token_ids, **fields)
    response = await client.post("/v1/states", json={"request_id": answer["id"]})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_state_is_kept_told_and_forgotten(client: httpx.AsyncClient) -> None:
    state = await save(client)
    assert (state["object"], state["tokens"], state["read_tokens"]) == ("state", 150, 128)
    assert (await client.get(f"/v1/states/{state['id']}")).json() == state
    assert (await client.get("/v1/states")).json() == {"object": "list", "data": [state]}
    deleted = (await client.delete(f"/v1/states/{state['id']}")).json()
    assert deleted == {"id": state["id"], "object": "state", "deleted": True}
    for response in (
        await client.get(f"/v1/states/{state['id']}"),
        await client.delete(f"/v1/states/{state['id']}"),
        await client.get(f"/v1/states/{state['id']}/export"),
        await client.post("/generate", json={"token_ids": [7], "from_state": state["id"]}),
        await client.post("/v1/states", json={"request_id": "gen-unknown"}),
    ):
        assert response.status_code == 404, response.text


async def test_requests_go_on_from_a_state(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """As many as wanted, by either path, with the salt of whoever left it; BOS comes once."""
    state = await save(client, cache_salt="mine")
    answer = await say(client, [7, 9], from_state=state["id"], n=3)
    assert answer["usage"]["prompt_tokens"] == 152
    body = {"prompt": "ab", "from_state": state["id"], "max_tokens": 1}
    assert (await client.post("/v1/completions", json=body)).status_code == 200
    first, *forks, completion = engine.requests
    assert len(forks) == 3
    for request in forks:
        assert request.prompt_token_ids == (*LONG, 7, 9)
        assert request.state is not None
        assert request.state.length == 128
        assert request.cache_salt == first.cache_salt
    assert completion.prompt_token_ids == (*LONG, 4, 5)


async def test_truncation_is_of_what_is_new(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    state = await save(client)
    await say(client, [7, 8, 9], from_state=state["id"], truncate_prompt_tokens=2)
    assert engine.requests[-1].prompt_token_ids == (*LONG, 8, 9)


async def test_a_file_goes_from_server_to_server(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    state = await save(client)
    file = await client.get(f"/v1/states/{state['id']}/export")
    assert file.headers["content-disposition"] == f'attachment; filename="{state["id"]}.safetensors"'
    response = await client.post("/v1/states/import", content=file.content)
    imported = response.json()
    assert {**imported, "id": 0, "created": 0} == {**state, "id": 0, "created": 0}
    await say(client, [7], from_state=imported["id"])
    assert engine.requests[-1].prompt_token_ids == (*LONG, 7)
    assert engine.requests[-1].cache_salt != engine.requests[0].cache_salt, "what it leads to is shared with nobody"


@pytest.fixture
async def small(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Takes bodies of 1,000 bytes."""
    transport = httpx.ASGITransport(create_app(service, max_body_bytes=1000))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client


async def test_a_file_may_be_larger_than_a_request(small: httpx.AsyncClient) -> None:
    state = await save(small)
    file = (await small.get(f"/v1/states/{state['id']}/export")).content
    assert len(file) > 2000
    assert (await small.post("/v1/states/import", content=file)).json()["tokens"] == 150
    assert (await small.post("/v1/completions", content=file)).status_code == 413


async def test_a_file_is_not_read_beyond_what_a_state_can_have(small: httpx.AsyncClient) -> None:
    limit, piece, sent = STATE_FORMAT.max_file_bytes, 2**20, 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += piece
            yield bytes(piece)

    for content in (endless(), bytes(limit + 1)):
        response = await small.post("/v1/states/import", content=content)
        assert response.status_code == 413
        assert response.json()["error"]["message"] == f"the body is larger than {limit} bytes"
    assert limit < sent <= limit + piece
    assert (await small.post("/v1/states/import", content=bytes(limit))).status_code == 400, "read, and no state"


async def test_few_files_are_under_way_at_a_time(service: Service) -> None:
    service = replace(service, imports=asyncio.Semaphore(1))
    refused: list[httpx.Response] = []
    file = STATE_FORMAT.export(SavedState((5, 6)))

    async def slow(other: httpx.AsyncClient) -> AsyncIterator[bytes]:
        yield file[:100]
        refused.append(await other.post("/v1/states/import", content=file))
        yield file[100:]

    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://roost") as client:
        assert (await client.post("/v1/states/import", content=slow(client))).status_code == 200
        assert (refused[0].status_code, refused[0].json()["error"]["code"]) == (503, "overloaded")
        assert (await client.post("/v1/states/import", content=file)).status_code == 200, "there is room again"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"nonsense", "the file is no whole state file"),
        (replace(STATE_FORMAT, model="other").export(SavedState((5, 6))), "the file is of another model (other; "),
    ],
)
async def test_files_that_are_refused(client: httpx.AsyncClient, file: bytes, message: str) -> None:
    response = await client.post("/v1/states/import", content=file)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


async def test_with_a_key_only_signed_files_are_taken(service: Service) -> None:
    service = replace(service, state_key=b"sesame")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://roost") as client:
        state = await save(client)
        signed = (await client.get(f"/v1/states/{state['id']}/export")).content
        assert (await client.post("/v1/states/import", content=signed)).status_code == 200
        for file in (STATE_FORMAT.export(SavedState((5, 6))), STATE_FORMAT.export(SavedState((5, 6)), b"other")):
            response = await client.post("/v1/states/import", content=file)
            assert response.status_code == 400
            assert "sign" in response.json()["error"]["message"]


async def test_there_is_an_end_to_room(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await save(client)
    stats = EngineStats(slots=4, cache=CacheStats(budget=3000))
    monkeypatch.setattr(FakeEngine, "stats", stats)
    answer = await say(client, LONG)
    response = await client.post("/v1/states", json={"request_id": answer["id"]})
    assert response.status_code == 507
    assert "delete one" in response.json()["error"]["message"]


@pytest.fixture
async def by_key(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service, Access(ApiKeys(["one:11", "two:22"]))))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost", headers={"x-api-key": "11"}) as client:
        yield client


async def test_keys_do_not_see_each_others_states(by_key: httpx.AsyncClient) -> None:
    answer = await say(by_key, LONG)
    state = (await by_key.post("/v1/states", json={"request_id": answer["id"]})).json()
    by_key.headers["x-api-key"] = "22"
    assert (await by_key.get("/v1/states")).json()["data"] == []
    assert (await by_key.get(f"/v1/states/{state['id']}")).status_code == 404
    assert (await by_key.post("/v1/states", json={"request_id": answer["id"]})).status_code == 404
