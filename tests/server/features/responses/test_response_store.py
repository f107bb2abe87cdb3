"""What a store in memory keeps, and for how long. It is SQLite, whose other behaviour is that of files."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import features_with, until
from roost.server.app import create_app
from roost.server.database.database import Transaction
from roost.server.feature import Opening
from roost.server.features.responses import open_responses as opening
from roost.server.features.responses import response_store
from roost.server.features.responses.input_items import items_with_ids
from roost.server.features.responses.open_responses import OpenResponses, open_responses
from roost.server.features.responses.response_table import num_messages, pack, unpack
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.text.chat_format import ConversationMessage, FunctionCall

ALICE = {"authorization": "Bearer key-of-alice"}
BOB = {"authorization": "Bearer key-of-bob"}


@pytest.fixture
def feature(service: Service, monkeypatch: pytest.MonkeyPatch) -> OpenResponses:
    """Responses in memory that has room for 60,000 bytes of two tenants."""
    monkeypatch.setattr(opening, "_MEMORY_BYTES", 60_000)
    monkeypatch.setattr(opening, "_MIN_MEMORY_BYTES", 1)
    return open_responses(Opening(service, num_tenants=2))


@pytest.fixture
async def client(service: Service, feature: OpenResponses) -> AsyncIterator[httpx.AsyncClient]:
    keys = Access(keys=ApiKeys(["alice:key-of-alice", "bob:key-of-bob"]))
    app = create_app(service, keys, features_with(service, feature))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://roost", headers=ALICE, timeout=30) as client:
        yield client
    await feature.close()


async def created(client: httpx.AsyncClient, size: int, **fields: Any) -> str:
    """Returns the path of a new response whose input has a number of bytes."""
    body = {"input": "x" * size, "max_output_tokens": 1, **fields}
    response = await client.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    return f"/v1/responses/{response.json()['id']}"


async def stored(feature: OpenResponses, query: str) -> Any:
    """Returns the first value that a query finds."""

    def read(transaction: Transaction) -> Any:
        return transaction.rows(query)[0][0]

    return await feature.store.database.run(read)


async def test_the_oldest_responses_of_the_same_tenant_make_room(client: httpx.AsyncClient) -> None:
    others = await created(client, 10_000)
    bobs = (await client.post("/v1/responses", json={"input": "hi", "max_output_tokens": 1}, headers=BOB)).json()["id"]
    own = [await created(client, 10_000) for _ in range(3)]
    statuses = [(await client.get(path)).status_code for path in (others, *own)]
    assert statuses == [404, 404, 200, 200]
    assert (await client.get(f"/v1/responses/{bobs}", headers=BOB)).status_code == 200


async def test_a_long_stream_keeps_its_newest_events(
    client: httpx.AsyncClient, feature: OpenResponses, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that begins before them is told where it can begin."""
    monkeypatch.setattr(response_store, "_MIN_KEPT", 500)
    monkeypatch.setattr(response_store, "_MAX_KEPT", 500)
    engine.gate.clear()
    body = {"input": "hi", "max_output_tokens": 3, "background": True, "stream": True}
    following = asyncio.create_task(client.post("/v1/responses", json=body))
    await until(lambda: feature.store.logs and engine.running)
    (log,) = feature.store.logs.values()
    before = log.last.next_event
    for number in range(before, before + 20):
        await log.append([b"data: %0100d\n\n" % number])
    engine.gate.set()
    await until(lambda: not feature.is_busy)
    first = await stored(feature, "SELECT min(first_event) FROM roost_events")
    assert before < first < log.last.next_event
    path = f"/v1/responses/{log.lease.id}"
    refused = await client.get(path, params={"stream": "true"})
    assert refused.status_code == 400
    assert f"send starting_after={first}" in refused.json()["error"]["message"]
    rest = (await client.get(path, params={"stream": "true", "starting_after": first})).text
    assert rest.count("data: ") == log.last.next_event - first - 1
    assert (await client.get(path)).json()["status"] == "incomplete"
    await following


async def test_memory_keeps_nothing_that_only_other_replicas_would_read(
    client: httpx.AsyncClient, feature: OpenResponses, engine: FakeEngine
) -> None:
    engine.gate.clear()
    path = await created(client, 10, background=True, max_output_tokens=50)
    assert await stored(feature, "SELECT count(*) FROM roost_events") == 1
    engine.gate.set()
    await until(lambda: not feature.is_busy)
    assert (await client.get(path)).json()["status"] == "incomplete"
    assert await stored(feature, "SELECT count(*) FROM roost_events") == 0


async def test_two_servers_in_a_process_have_stores_of_their_own(client: httpx.AsyncClient, service: Service) -> None:
    path = await created(client, 10)
    other = open_responses(Opening(service))
    assert await other.store.find(path.rpartition("/")[2]) is None
    await other.close()


def test_messages_are_kept_as_they_were() -> None:
    """Calls, results and parts of texts are kept, too, and messages are counted without being unpacked."""
    messages = [
        ConversationMessage("user", ("a", "é\u2028")),
        ConversationMessage("user", '"role":"user" {"role":"user"} \\"role":'),
        ConversationMessage("assistant", calls=(FunctionCall("call_1", "f", '{"role": 1,"role":"a"}'),)),
        ConversationMessage("tool", "", call_id='"role":'),
        ConversationMessage("assistant", ("no",)),
    ]
    packed = pack(messages)
    assert unpack(packed) == messages
    assert num_messages(packed) == len(messages)
    listed = items_with_ids("resp_a", messages, is_input=True)
    kinds = ["message", "message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in listed] == kinds
