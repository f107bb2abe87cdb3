"""Ids, cursors and texts that no database takes: they are as unknown as any other, on both databases."""

import itertools
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, make_service
from roost.server.app import create_app
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.features.responses.open_responses import OpenResponses
from roost.server.features.responses.response_store import ResponseStore
from roost.server.text.served_model import ServedModel

IDS = ("%00", "a%00b", "file-%00", "batch_%00", "resp_%00", "%ED%A0%80", "%FF", "x" * 5000, "%F0%9F%90%A6", "%0A")
"""Ids in a URL; the fourth from the end is half of a surrogate pair in UTF-8."""

TEXTS = ("\0", "a\0b", "file-\0", "x" * 5000, "resp_" + "0" * 31 + "\0", "file-" + "0" * 32 + "\n")
"""Ids in a body."""


@pytest.fixture
async def client(engine: FakeEngine, model: ServedModel, address: str) -> AsyncIterator[httpx.AsyncClient]:
    database = opened(address)
    store, responses = BatchStore(database, 86400.0), ResponseStore(database, 1000.0)
    service = make_service(engine, model)
    own = OpenBatches(service, store), OpenResponses(service, responses)
    app = create_app(service, features=features_with(service, *own))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client
    store.close()


async def test_an_id_in_a_path_is_unknown(client: httpx.AsyncClient) -> None:
    conversation = f"/v1/conversations/{(await client.post('/v1/conversations', json={})).json()['id']}"
    paths = (
        ("GET", "/v1/files/{}"),
        ("GET", "/v1/files/{}/content"),
        ("DELETE", "/v1/files/{}"),
        ("GET", "/v1/batches/{}"),
        ("POST", "/v1/batches/{}/cancel"),
        ("GET", "/v1/responses/{}"),
        ("GET", "/v1/responses/{}/input_items"),
        ("POST", "/v1/responses/{}/cancel"),
        ("DELETE", "/v1/responses/{}"),
        ("GET", "/v1/conversations/{}"),
        ("POST", "/v1/conversations/{}"),
        ("DELETE", "/v1/conversations/{}"),
        ("GET", "/v1/conversations/{}/items"),
        ("GET", f"{conversation}/items/{{}}"),
        ("DELETE", f"{conversation}/items/{{}}"),
        ("GET", "/v1/states/{}"),
        ("GET", "/v1/states/{}/export"),
        ("DELETE", "/v1/states/{}"),
        ("GET", "/v1/models/{}"),
    )
    for unknown, (method, path) in itertools.product(IDS, paths):
        body = {"metadata": {}} if path == "/v1/conversations/{}" and method == "POST" else None
        response = await client.request(method, path.format(unknown), json=body)
        assert (response.status_code, method, path, unknown) == (404, method, path, unknown)
        assert re.match("there is no|the model .* does not exist", response.json()["error"]["message"])


@pytest.mark.parametrize(
    ("path", "field", "fields", "status"),
    [
        ("/v1/batches", "input_file_id", {"endpoint": "/v1/completions", "completion_window": "24h"}, 400),
        ("/v1/responses", "previous_response_id", {"input": "a"}, 400),
        ("/v1/responses", "conversation", {"input": "a"}, 404),
        ("/v1/responses", "model", {"input": "a"}, 404),
        ("/v1/states", "request_id", {}, 404),
        ("/v1/completions", "from_state", {"prompt": "a"}, 404),
        ("/v1/chat/completions", "from_state", {"messages": [{"role": "user", "content": "a"}]}, 404),
        ("/v1/responses", "from_state", {"input": "a"}, 404),
        ("/abort_request", "request_id", {}, 200),
    ],
)
async def test_an_id_in_a_body_is_unknown(
    client: httpx.AsyncClient, path: str, field: str, fields: dict[str, Any], status: int
) -> None:
    for unknown in TEXTS:
        response = await client.post(path, json={**fields, field: unknown})
        assert (response.status_code, unknown) == (status, unknown)


async def test_a_reference_to_an_item_is_unknown(client: httpx.AsyncClient) -> None:
    for unknown in (*TEXTS, "msg_" + "0" * 31 + "\0"):
        response = await client.post("/v1/responses", json={"input": [{"type": "item_reference", "id": unknown}]})
        assert (response.status_code, unknown) == (404, unknown)


async def test_a_cursor_is_unknown(client: httpx.AsyncClient) -> None:
    made = (await client.post("/v1/responses", json={"input": "a", "max_output_tokens": 2})).json()
    conversation = (await client.post("/v1/conversations", json={})).json()["id"]
    items = f"/v1/responses/{made['id']}/input_items", f"/v1/conversations/{conversation}/items"
    paths = ("/v1/files", "/v1/batches", "/v1/states", *items)
    for unknown, path in itertools.product(IDS, paths):
        response = await client.get(f"{path}?after={unknown}")
        assert (response.status_code, path, unknown) == (400, path, unknown)
        assert response.json()["error"]["param"] == "after"


async def test_a_null_in_a_text_is_kept(client: httpx.AsyncClient) -> None:
    """Responses and lines are stored as bytes, which may hold any text."""
    metadata = {"a\0": "b\0"}
    fields = {"input": "a\0b", "instructions": "\0", "metadata": metadata, "max_output_tokens": 2}
    for is_background in (False, True):
        made = await client.post("/v1/responses", json={**fields, "background": is_background})
        assert made.status_code == 200
        stored = (await client.get(f"/v1/responses/{made.json()['id']}")).json()
        assert stored["metadata"] == metadata
    request = {"custom_id": "a\0", "method": "POST", "url": "/v1/completions", "body": {"prompt": "\0", "model": "\0"}}
    upload = {"file": ("in.jsonl", json.dumps(request).encode())}
    file = (await client.post("/v1/files", data={"purpose": "batch"}, files=upload)).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = (await client.post("/v1/batches", json={**body, "metadata": metadata})).json()
    assert (await client.get(f"/v1/batches/{batch['id']}")).json()["metadata"] == metadata


async def test_an_event_number_has_a_limit(client: httpx.AsyncClient) -> None:
    """SQLite's integers have 64 bits."""
    fields = {"input": "a", "max_output_tokens": 2, "background": True, "stream": True}
    async with client.stream("POST", "/v1/responses", json=fields) as stream:
        events = [json.loads(line[6:]) async for line in stream.aiter_lines() if line.startswith("data: ")]
    path = f"/v1/responses/{events[0]['response']['id']}?stream=true&starting_after="
    assert (await client.get(f"{path}{len(events) - 1}")).status_code == 200
    for number in (len(events), 2**31 - 1, 2**31, 2**63, 2**64, 10**4000):
        assert (await client.get(f"{path}{number}")).status_code == 400
