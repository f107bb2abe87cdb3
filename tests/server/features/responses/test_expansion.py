"""What bodies name or pack is counted and charged before it is read: each door, in memory and in both databases."""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import features_with, live, make_service, until
from roost.server.app import create_app
from roost.server.features.responses import expansion
from roost.server.features.responses.open_responses import OpenResponses
from roost.server.features.responses.response_store import ResponseStore
from roost.server.generation.admission import PreemptibleAdmission, admission
from roost.server.generation.prompts import Prompt
from roost.server.generation.service import Service
from roost.server.http.in_process import post_json
from roost.server.schemas.body import MAX_MESSAGES
from roost.server.text.served_model import ServedModel
from test_conversations import conversation, message, reference, responses, store  # noqa: F401 - fixtures

MAX_BYTES = 10_000
"""Maximum bytes that a body expands to."""

LONG = "x" * 3000
"""A text of which two fit, also beside what they are read from, and four don't."""

PROMPTS = ("/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact")
"""Routes that make a prompt."""


@pytest.fixture
def service(engine: FakeEngine, model: ServedModel) -> Service:
    made = make_service(engine, model)
    made.admissions.max_expanded_bytes = MAX_BYTES
    return made


@pytest.fixture
async def client(service: Service, responses: OpenResponses) -> AsyncIterator[httpx.AsyncClient]:  # noqa: F811
    app = create_app(service, features=features_with(service, responses))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost", timeout=30) as client:
        yield client


@pytest.fixture
def encoded(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that were charged at each encoding of a prompt."""
    charged: list[int] = []
    make = service.prompts.chat

    async def chat(*args: Any, **options: Any) -> Prompt:
        charged.append(admission.get().num_kept)
        return await make(*args, **options)

    monkeypatch.setattr(service.prompts, "chat", chat)
    return charged


async def kept_item(client: httpx.AsyncClient) -> dict[str, str]:
    """Returns a reference to a long item of a conversation."""
    path = await conversation(client, items=[message(LONG)])
    return reference((await client.get(f"{path}/items")).json()["data"][0])


async def output_item(client: httpx.AsyncClient) -> dict[str, str]:
    """Returns a reference to the long output of a response."""
    body = {"input": "hi", "max_output_tokens": 1000, "ignore_eos": True}
    (item,) = (await client.post("/v1/responses", json=body)).json()["output"]
    assert 1800 < len(item["content"][0]["text"].encode()) < 4000
    return reference(item)


async def input_item(client: httpx.AsyncClient) -> dict[str, str]:
    """Returns a reference to the long input of a response."""
    made = (await client.post("/v1/responses", json={"input": LONG, "max_output_tokens": 1})).json()
    return reference((await client.get(f"/v1/responses/{made['id']}/input_items")).json()["data"][0])


async def refused(client: httpx.AsyncClient, path: str, param: str, **fields: Any) -> None:
    """Checks that a request is a 413 that names a field, by an expression."""
    response = await client.post(path, json=fields)
    assert response.status_code == 413, response.text
    error = response.json()["error"]
    assert error["code"] == "request_too_large"
    assert re.fullmatch(param, error["param"])
    assert f"{error['param']}: with it, the request expands to " in error["message"]


@pytest.mark.parametrize("make", [kept_item, output_item, input_item])
async def test_each_reference_counts(
    client: httpx.AsyncClient, encoded: list[int], make: Callable[[httpx.AsyncClient], Awaitable[dict[str, str]]]
) -> None:
    named = await make(client)
    encoded.clear()
    for path in PROMPTS:
        await refused(client, path, r"input\[[2-5]\]", model="counter", input=[named] * 6)
        assert not encoded
        body = {"model": "counter", "input": [named, message("a"), named]}
        assert (await client.post(path, json=body)).status_code == 200
        assert encoded.pop() > 8 * 2 * 1800
    path = await conversation(client)
    for added in ("/v1/conversations", f"{path}/items"):
        await refused(client, added, r"items\[[2-5]\]", items=[named] * 6)
        assert (await client.post(added, json={"items": [named, named]})).status_code == 200


async def test_nothing_is_read_that_is_too_much(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sizes suffice. What fits is read when it has been charged."""
    named, charged = await kept_item(client), list[int]()
    read_parts = expansion.read_parts

    async def noted(kept: ResponseStore, parts: Any, *, are_sizes: bool) -> Any:
        if not are_sizes:
            charged.append(admission.get().num_kept)
        return await read_parts(kept, parts, are_sizes=are_sizes)

    monkeypatch.setattr(expansion, "read_parts", noted)
    for path in PROMPTS:
        await refused(client, path, r"input\[103\]", model="counter", input=[*[message("a")] * 100, *[named] * 900])
    await refused(client, "/v1/conversations", r"items\[3\]", items=[named] * 20)
    assert not charged
    await client.post("/v1/responses/input_tokens", json={"input": [named, named]})
    assert charged[0] > 8 * 2 * len(LONG)


async def test_a_response_that_is_continued_counts(client: httpx.AsyncClient, encoded: list[int]) -> None:
    previous = None
    for _ in range(4):
        body = {"input": LONG, "previous_response_id": previous, "max_output_tokens": 1}
        previous = (await client.post("/v1/responses", json=body)).json()["id"]
    assert encoded[-1] > 8 * 2 * len(LONG)
    encoded.clear()
    for path in PROMPTS:
        named = {"model": "counter", "input": "a", "previous_response_id": previous}
        await refused(client, path, "previous_response_id", **named)
    assert not encoded
    listed = await client.get(f"/v1/responses/{previous}/input_items")
    assert len(listed.json()["data"]) == 7, "it can still be listed"


async def test_a_conversation_that_is_continued_counts(client: httpx.AsyncClient, encoded: list[int]) -> None:
    path = await conversation(client, items=[message(LONG)] * 3)
    name = path.rpartition("/")[2]
    for route in PROMPTS[1:]:
        assert (await client.post(route, json={"model": "counter", "input": "a", "conversation": name})).is_success
        assert encoded.pop() > 8 * 3 * len(LONG)
    assert (await client.post(f"{path}/items", json={"items": [message(LONG)]})).is_success
    for route in PROMPTS:
        await refused(client, route, "conversation", model="counter", input="a", conversation=name)
    assert not encoded
    assert (await client.post(f"{path}/items", json={"items": [message("b")]})).is_success, "it is not locked"


def packed(count: int) -> dict[str, str]:
    """Returns a compaction item of empty messages."""
    items = json.dumps([{"role": "user", "content": ""}] * count).encode()
    return {"type": "compaction", "encrypted_content": "roost1." + base64.b64encode(items).decode()}


async def test_the_messages_of_a_compaction_item_count(
    client: httpx.AsyncClient, service: Service, encoded: list[int]
) -> None:
    for path in PROMPTS:
        await refused(client, path, r"input\[1\]", model="counter", input=[message("a"), packed(300)])
    service.admissions.max_expanded_bytes = 2**20
    for path in PROMPTS:
        await refused(client, path, r"input\[1\]", model="counter", input=[message("a"), packed(MAX_MESSAGES)])
    assert not encoded
    path = await conversation(client)
    for added in ("/v1/conversations", f"{path}/items"):
        await refused(client, added, r"items\[0\]", items=[packed(1025)])
    assert (await client.post(f"{path}/items", json={"items": [packed(1024)]})).is_success
    body = {"input": [message("a")] * 1025, "conversation": path.rpartition("/")[2]}
    response = await client.post("/v1/responses", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (413, "input")
    assert "adds 1,025 items to the conversation" in response.json()["error"]["message"]


async def test_what_a_line_of_a_batch_names_counts(
    client: httpx.AsyncClient,
    service: Service,
    responses: OpenResponses,  # noqa: F811
) -> None:
    named, app = await kept_item(client), create_app(service, features=features_with(service, responses))
    for count, status in ((4, 413), (2, 200)):
        own = PreemptibleAdmission(service.admissions)
        body = json.dumps({"input": [named] * count, "max_output_tokens": 1}).encode()
        assert (await post_json(app, "/v1/responses", body, own)).status == status
        own.release()
    assert service.admissions.kept_preemptible.num_bytes == 0


@pytest.mark.parametrize("path", [*PROMPTS, "/v1/conversations", "items", "input_items"])
async def test_a_client_that_leaves_ends_the_expansion(
    service: Service,
    responses: OpenResponses,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    """What it was charged is free again, and its turn."""
    has_begun, is_cancelled = asyncio.Event(), asyncio.Event()

    read_parts = expansion.read_parts

    async def never(kept: ResponseStore, parts: Any, *, are_sizes: bool) -> Any:
        if are_sizes or not parts:
            return await read_parts(kept, parts, are_sizes=are_sizes)
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_cancelled.set()
            raise

    async with live(service, features=features_with(service, responses)) as client, asyncio.timeout(60):
        named = await kept_item(client)
        made = (await client.post("/v1/responses", json={"input": LONG, "max_output_tokens": 1})).json()
        await until(lambda: not service.admissions._kept.num_bytes)
        monkeypatch.setattr(expansion, "read_parts", never)
        body = {"model": "counter", "items" if "conversations" in path else "input": [named, named]}
        if path == "items":
            path, body = f"{await conversation(client)}/items", {"items": [named, named]}
        method, sent = ("POST", body) if path != "input_items" else ("GET", None)
        path = path if method == "POST" else f"/v1/responses/{made['id']}/input_items"
        leaving = asyncio.create_task(client.request(method, path, json=sent))
        await has_begun.wait()
        assert service.admissions._kept.num_bytes > 8 * len(LONG)
        leaving.cancel()
        await is_cancelled.wait()
        await until(lambda: not service.admissions._kept.num_bytes)
