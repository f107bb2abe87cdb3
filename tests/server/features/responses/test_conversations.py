"""`/v1/conversations`: their items, and responses that continue them, in both databases."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from client_types import checked, events
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, live, make_service, until
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItem, ConversationItemList
from openai.types.responses import Response
from roost.server.app import create_app
from roost.server.features.responses import conversations
from roost.server.features.responses.conversations import Item, Turn
from roost.server.features.responses.open_responses import OpenResponses
from roost.server.features.responses.response_store import ResponseStore
from roost.server.features.responses.response_table import ResponseRecord
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.text.served_model import ServedModel

KEYS = Access(keys=ApiKeys(["alice:key-of-alice", "bob:key-of-bob"]))


@pytest.fixture
async def store(address: str) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(opened(address), 1000.0)
    yield store
    await store.close()


@pytest.fixture
def service(engine: FakeEngine, model: ServedModel) -> Service:
    return make_service(engine, model)


@pytest.fixture
def responses(service: Service, store: ResponseStore) -> OpenResponses:
    return OpenResponses(service, store)


@pytest.fixture
async def client(service: Service, responses: OpenResponses) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(service, features=features_with(service, responses))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost", timeout=30) as client:
        yield client


async def conversation(client: httpx.AsyncClient, **fields: Any) -> str:
    """Returns the path of a new conversation."""
    made = await client.post("/v1/conversations", json=fields)
    assert made.status_code == 200, made.text
    return f"/v1/conversations/{checked(Conversation, made.text).id}"


async def respond(client: httpx.AsyncClient, path: str, said: Any = "hi", **fields: Any) -> httpx.Response:
    body = {"input": said, "max_output_tokens": 3, "conversation": path.rpartition("/")[2], **fields}
    return await client.post("/v1/responses", json=body)


async def texts(client: httpx.AsyncClient, path: str) -> list[str]:
    """Returns the texts of all messages, oldest first."""
    listed = await client.get(f"{path}/items", params={"order": "asc", "limit": 100})
    found = checked(ConversationItemList, listed.text)
    return [item.content[0].text for item in found.data]


def message(text: str, role: str = "user") -> dict[str, str]:
    return {"type": "message", "role": role, "content": text}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


def reference(item: dict[str, Any]) -> dict[str, str]:
    return {"type": "item_reference", "id": item["id"]}


async def test_items_are_referred_to_by_their_ids(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    """Those that a client added, a response's input and its output, from other conversations and from none."""
    path = await conversation(client, items=[message("one"), {"role": "assistant", "content": "two"}])
    answer = (await respond(client, path, "three")).json()
    items = (await client.get(f"{path}/items", params={"order": "asc"})).json()["data"]
    assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant"]
    said = [*items[:3], message(answer["output"][0]["content"][0]["text"], "assistant"), message("more")]
    for body in (
        {"input": [*map(reference, items), message("more")]},
        {"input": said},
        {"input": "more", "conversation": path.rpartition("/")[2]},
    ):
        assert (await client.post("/v1/responses", json={**body, "max_output_tokens": 2})).status_code == 200
    by_reference, whole, continued = engine.requests[-3:]
    assert by_reference.prompt_token_ids == whole.prompt_token_ids == continued.prompt_token_ids
    copied = await conversation(client, items=[reference(item) for item in reversed(items)])
    assert await texts(client, copied) == [item["content"][0]["text"] for item in reversed(items)]
    assert (await client.delete(f"{path}/items/{items[0]['id']}")).status_code == 200
    body = {"input": [reference(items[1]), reference(items[0])]}
    assert items[0]["id"] in error_of(await client.post("/v1/responses", json=body), 404)["message"]


async def test_input_items_of_responses_are_referred_to_by_their_ids(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    first = (await client.post("/v1/responses", json={"input": "one", "max_output_tokens": 2})).json()
    body = {"input": "two", "previous_response_id": first["id"], "max_output_tokens": 2}
    second = (await client.post("/v1/responses", json=body)).json()
    listed = await client.get(f"/v1/responses/{second['id']}/input_items", params={"order": "asc"})
    items = [*listed.json()["data"], *second["output"]]
    assert len(items) == 4
    for body in (
        {"previous_response_id": second["id"], "input": "x"},
        {"input": [*map(reference, items), message("x")]},
    ):
        assert (await client.post("/v1/responses", json={**body, "max_output_tokens": 2})).status_code == 200
    assert engine.requests[-1].prompt_token_ids == engine.requests[-2].prompt_token_ids
    unknown = {"type": "item_reference", "id": items[0]["id"][:-1] + "9"}
    error_of(await client.post("/v1/responses", json={"input": [unknown]}), 404)


async def test_a_conversation_is_described_updated_and_deleted(client: httpx.AsyncClient) -> None:
    path = await conversation(client, metadata={"topic": "sea"}, items=[message("one")])
    assert (await client.get(path)).json()["metadata"] == {"topic": "sea"}
    updated = await client.post(path, json={"metadata": {"topic": "land"}})
    assert checked(Conversation, updated.text).metadata == {"topic": "land"}
    assert (await client.get(path)).json() == updated.json()
    deleted = checked(ConversationDeletedResource, (await client.delete(path)).text)
    assert (deleted.id, deleted.deleted) == (path.rpartition("/")[2], True)
    for again in (
        await client.get(path),
        await client.delete(path),
        await client.post(path, json={"metadata": {}}),
        await client.get(f"{path}/items"),
        await client.post(f"{path}/items", json={"items": [message("two")]}),
        await respond(client, path),
    ):
        assert deleted.id in error_of(again, 404)["message"]


async def test_items_are_added_listed_and_deleted(client: httpx.AsyncClient) -> None:
    path = await conversation(client)
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c1", "output": "done"}
    added = await client.post(f"{path}/items", json={"items": [message("one"), call, result]})
    items = checked(ConversationItemList, added.text).data
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    for item in items:
        one = await client.get(f"{path}/items/{item.id}")
        assert checked(ConversationItem, one.text) == item
    assert (await client.delete(f"{path}/items/{items[0].id}")).json() == (await client.get(path)).json()
    left = (await client.get(f"{path}/items", params={"order": "asc"})).json()["data"]
    assert left == added.json()["data"][1:]
    for unknown in (items[0].id, "msg_x", "msg_" + "0" * 32):
        error_of(await client.get(f"{path}/items/{unknown}"), 404)
        error_of(await client.delete(f"{path}/items/{unknown}"), 404)


async def test_items_come_in_pages(client: httpx.AsyncClient) -> None:
    path = await conversation(client, items=[message(str(number)) for number in range(20)])
    await client.post(f"{path}/items", json={"items": [message(str(number)) for number in range(20, 25)]})
    whole = (await client.get(f"{path}/items", params={"limit": 100, "order": "asc"})).json()["data"]
    assert [item["content"][0]["text"] for item in whole] == [str(number) for number in range(25)]
    for order, expected in (("asc", whole), ("desc", whole[::-1])):
        found, after, has_more = list[Any](), {}, True
        while has_more:
            page = (await client.get(f"{path}/items", params={"limit": 10, "order": order, **after})).json()
            found, after, has_more = found + page["data"], {"after": page["last_id"]}, page["has_more"]
        assert found == expected
    error_of(await client.get(f"{path}/items", params={"after": "msg_x"}), 400)


async def test_more_items_than_a_request_may_add_are_refused(client: httpx.AsyncClient) -> None:
    path = await conversation(client)
    items = [message(str(number)) for number in range(21)]
    assert error_of(await client.post(f"{path}/items", json={"items": items}), 400)["param"] == "items"
    assert error_of(await client.post("/v1/conversations", json={"items": items}), 400)["param"] == "items"


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"store": False}, {"store": False, "stream": True}])
async def test_responses_continue_a_conversation(
    client: httpx.AsyncClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    path = await conversation(client, items=[message("be short", "system"), message("one")])
    for said in ("two", "three"):
        got = await respond(client, path, said, instructions="now", **fields)
        response = events(got.text)[-1][1]["response"] if "stream" in fields else got.json()
        assert checked(Response, response).conversation is not None
        assert response["conversation"] == {"id": path.rpartition("/")[2]}
    assert await texts(client, path) == ["be short", "one", "two", "ABC", "three", "ABC"]
    said_before = [("system", "be short"), ("user", "one"), ("user", "two"), ("assistant", "ABC"), ("user", "three")]
    chat = [{"role": "system", "content": "now"}, *({"role": role, "content": text} for role, text in said_before)]
    await client.post("/v1/chat/completions", json={"messages": chat, "max_tokens": 1})
    assert engine.requests[-1].prompt_token_ids == engine.requests[-2].prompt_token_ids


async def test_a_conversation_may_be_an_object(client: httpx.AsyncClient) -> None:
    path = await conversation(client)
    assert (await respond(client, path, conversation={"id": path.rpartition("/")[2]})).status_code == 200
    assert await texts(client, path) == ["hi", "ABC"]


async def test_input_tokens_count_the_conversation(client: httpx.AsyncClient) -> None:
    path = await conversation(client, items=[message("one"), message("two", "assistant")])
    fields = {"input": "hi", "conversation": path.rpartition("/")[2]}
    counted = (await client.post("/v1/responses/input_tokens", json=fields)).json()["input_tokens"]
    assert (await respond(client, path)).json()["usage"]["input_tokens"] == counted
    assert await texts(client, path) == ["one", "two", "hi", "ABC"]


NO_INPUT: list[dict[str, Any]] = [{}, {"input": None}, {"input": []}]


@pytest.mark.parametrize("no_input", NO_INPUT, ids=str)
async def test_input_may_be_left_out_where_a_conversation_or_response_has_the_turn(
    client: httpx.AsyncClient, engine: FakeEngine, no_input: dict[str, Any]
) -> None:
    async def answered(**fields: Any) -> str:
        counted = (await client.post("/v1/responses/input_tokens", json=fields)).json()
        made = await client.post("/v1/responses", json={**fields, "max_output_tokens": 3})
        assert made.status_code == 200, made.text
        assert counted["input_tokens"] == made.json()["usage"]["input_tokens"]
        return str(made.json()["id"])

    turns = [message("one"), message("two", "assistant"), message("three")]
    path = await conversation(client, items=turns)
    first = await answered(conversation=path.rpartition("/")[2], **no_input)
    assert await texts(client, path) == ["one", "two", "three", "ABC"]
    await answered(input=turns)
    await answered(previous_response_id=first, **no_input)
    await answered(input=[*turns, message("ABC", "assistant")])
    by_conversation, whole, by_response, longer = [tuple(each.prompt_token_ids) for each in engine.requests]
    assert by_conversation == whole
    assert by_response == longer


@pytest.mark.parametrize("no_input", NO_INPUT, ids=str)
async def test_input_is_missing_where_nothing_has_a_turn(client: httpx.AsyncClient, no_input: dict[str, Any]) -> None:
    """Alike where it is answered, counted and compacted; an empty conversation has no turn."""
    empty = (await conversation(client)).rpartition("/")[2]
    said = set()
    for path in ("/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact"):
        for fields in ({}, {"instructions": "Be kind."}, {"conversation": empty}):
            body = {"model": "counter", **fields, **no_input}
            error = error_of(await client.post(path, json=body), 400)
            assert error["param"] == "input"
            said.add(error["message"])
    assert len(said) == 1


async def test_a_conversation_and_a_previous_response_exclude_each_other(client: httpx.AsyncClient) -> None:
    path = await conversation(client)
    first = (await respond(client, path)).json()["id"]
    assert error_of(await respond(client, path, previous_response_id=first), 400)["param"] == "conversation"
    assert (await respond(client, path)).status_code == 200, "it was unlocked"


async def test_a_response_of_a_conversation_is_continued_by_its_id(client: httpx.AsyncClient) -> None:
    """Which adds nothing to the conversation."""
    path = await conversation(client, items=[message("one")])
    first = (await respond(client, path, "two")).json()["id"]
    listed = (await client.get(f"/v1/responses/{first}/input_items", params={"order": "asc"})).json()["data"]
    assert [item["content"][0]["text"] for item in listed] == ["one", "two"]
    body = {"input": "three", "previous_response_id": first, "max_output_tokens": 2}
    assert (await client.post("/v1/responses", json=body)).status_code == 200
    assert await texts(client, path) == ["one", "two", "ABC"]


@pytest.mark.parametrize(
    "result",
    [
        {"type": "function_call_output", "call_id": "c1", "output": "done"},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ],
    ids=["an item", "a message as in a chat"],
)
async def test_a_call_and_its_result_are_items(client: httpx.AsyncClient, result: dict[str, Any]) -> None:
    path = await conversation(client)
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    assert (await respond(client, path, [message("one"), call, result], tools=[tool])).status_code == 200
    listed = (await client.get(f"{path}/items", params={"order": "asc"})).json()["data"]
    assert (listed[2]["call_id"], listed[2]["output"]) == ("c1", "done")
    assert [item["type"] for item in listed] == ["message", "function_call", "function_call_output", "message"]
    assert (await respond(client, path, "two", tools=[tool])).status_code == 200


async def ended(client: httpx.AsyncClient, response_id: str) -> str:
    """Returns the status of a background response that has ended."""
    async with asyncio.timeout(60):
        while (status := (await client.get(f"/v1/responses/{response_id}")).json()["status"]) == "in_progress":
            await asyncio.sleep(0.005)
    return str(status)


async def test_a_background_response_locks_its_conversation(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    path, other = await conversation(client), await conversation(client)
    engine.gate.clear()
    begun = (await respond(client, path, "one", background=True)).json()
    for fields in ({}, {"stream": True}, {"background": True}, {"store": False}):
        error = error_of(await respond(client, path, "two", **fields), 400)
        assert (error["code"], error["param"]) == ("conversation_locked", "conversation")
    added = await client.post(f"{path}/items", json={"items": [message("three")]})
    assert error_of(added, 400)["code"] == "conversation_locked"
    assert await texts(client, path) == []
    assert (await respond(client, other, background=True)).status_code == 200
    engine.gate.set()
    assert await ended(client, begun["id"]) == "incomplete"
    assert await texts(client, path) == ["one", "ABC"]
    assert (await respond(client, path, "two")).status_code == 200


async def test_a_background_response_that_is_cancelled_adds_nothing(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    path = await conversation(client)
    for end in ("cancel", "delete"):
        engine.gate.clear()
        begun = (await respond(client, path, "one", background=True)).json()["id"]
        await until(lambda: engine.running)
        if end == "cancel":
            assert (await client.post(f"/v1/responses/{begun}/cancel")).json()["status"] == "cancelled"
        else:
            assert (await client.delete(f"/v1/responses/{begun}")).status_code == 200
        engine.gate.set()
        assert await texts(client, path) == []
    assert (await respond(client, path, "two")).status_code == 200
    assert await texts(client, path) == ["two", "ABC"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_that_fails_adds_nothing(client: httpx.AsyncClient, engine: FakeEngine, stream: bool) -> None:
    path = await conversation(client)
    engine.capacity = 0
    error_of(await respond(client, path, stream=stream), 429)
    engine.capacity = 1000
    error_of(await respond(client, path, stream=stream, tool_choice={"type": "web_search"}), 400)
    assert (await respond(client, path, "two")).status_code == 200
    assert await texts(client, path) == ["two", "ABC"]


async def test_a_stream_that_fails_in_the_middle_adds_nothing(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    path = await conversation(client)
    engine.breaks_after = 2
    name, _ = events((await respond(client, path, stream=True)).text)[-1]
    assert name == "response.failed"
    engine.breaks_after = None
    assert (await respond(client, path, "two")).status_code == 200
    assert await texts(client, path) == ["two", "ABC"]


async def test_a_response_that_is_kept_again_stays_as_it_was(client: httpx.AsyncClient, store: ResponseStore) -> None:
    """A line of a batch may run again, and come to another end."""
    path, name = await conversation(client), "1" * 32
    said, *outputs = (Item(each, b'{"id":"%s"}' % each.encode()) for each in ("msg_2", f"msg_{name}", f"fc_{name}_c0"))
    kept = []
    for output in outputs:
        about = path.rpartition("/")[2], f"resp_{name}"
        async with store.conversations.turn(*about) as lease:
            assert lease is not None
            turn = Turn(about[0], lease, [said, output])
            kept.append(await store.keep(ResponseRecord("", about[1], output.text, b"[]", b"[]"), turn))
    assert kept == [outputs[0].text] * 2
    listed = (await client.get(f"{path}/items?order=asc")).json()["data"]
    assert [item["id"] for item in listed] == [said.id, outputs[0].id]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_unlocks_its_conversation(
    service: Service, responses: OpenResponses, engine: FakeEngine, stream: bool
) -> None:
    async with live(service, features=features_with(service, responses)) as client:
        path = await conversation(client)
        engine.gate.clear()
        leaving = asyncio.create_task(respond(client, path, "one", stream=stream))
        await until(lambda: engine.running)
        assert error_of(await respond(client, path, "two"), 400)["code"] == "conversation_locked"
        leaving.cancel()
        await until(lambda: not engine.running)
        engine.gate.set()
        async with asyncio.timeout(60):
            while (await respond(client, path, "two")).status_code != 200:
                await asyncio.sleep(0.005)
        assert await texts(client, path) == ["two", "ABC"]


async def test_a_response_adds_nothing_to_a_conversation_that_was_deleted(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    path = await conversation(client)
    engine.gate.clear()
    begun = (await respond(client, path, background=True)).json()["id"]
    assert (await client.delete(path)).status_code == 200
    engine.gate.set()
    assert await ended(client, begun) == "incomplete"
    error_of(await client.get(path), 404)


async def test_a_conversation_has_a_limit(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_ITEMS", 3)
    path = await conversation(client, items=[message("one")])
    assert (await respond(client, path)).status_code == 200
    assert error_of(await respond(client, path), 403)["code"] == "quota_exceeded"
    error_of(await client.post(f"{path}/items", json={"items": [message("two")]}), 403)
    first = (await client.get(f"{path}/items", params={"order": "asc"})).json()["first_id"]
    assert (await client.delete(f"{path}/items/{first}")).status_code == 200
    assert (await respond(client, path)).status_code == 200


async def test_tenants_see_their_own_conversations_only(service: Service, responses: OpenResponses) -> None:
    app = create_app(service, KEYS, features_with(service, responses))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        client.headers["authorization"] = "Bearer key-of-alice"
        path = await conversation(client, items=[message("one")])
        item = (await client.get(f"{path}/items")).json()["first_id"]
        client.headers["authorization"] = "Bearer key-of-bob"
        for method, url, body in (
            ("GET", path, None),
            ("POST", path, {"metadata": {}}),
            ("GET", f"{path}/items", None),
            ("POST", f"{path}/items", {"items": [message("two")]}),
            ("GET", f"{path}/items/{item}", None),
            ("DELETE", f"{path}/items/{item}", None),
            ("DELETE", path, None),
        ):
            error_of(await client.request(method, url, json=body), 404)
        error_of(await respond(client, path), 404)
        error_of(await client.post("/v1/responses", json={"input": [reference({"id": item})]}), 404)
        client.headers["authorization"] = "Bearer key-of-alice"
        assert await texts(client, path) == ["one"]
