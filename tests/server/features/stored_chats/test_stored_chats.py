"""Chat completions with `store: true`, and how they are found again: in memory and in both databases."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from client_types import checked
from databases import KINDS, opened
from fake_engine import FakeEngine
from fake_server import features_with
from openai.types.chat import ChatCompletion, ChatCompletionDeleted
from query_plans import scans_of
from roost.server.app import create_app
from roost.server.database.database import Database, Transaction
from roost.server.database.expiry import Bounds, expired
from roost.server.database.pages import PageSpec
from roost.server.features.stored_chats import chat_table
from roost.server.features.stored_chats.chat_store import DurableChats, MemoryChats
from roost.server.features.stored_chats.open_stored_chats import OpenStoredChats
from roost.server.features.stored_chats.records import ChatFilter, StoredChat
from roost.server.generation.service import Service
from roost.server.http.api_keys import ApiKeys
from roost.server.http.auth import Access

PATH = "/v1/chat/completions"
OURS = frozenset({"stop_reason", "metadata"})
"""Fields of a stored completion that OpenAI's package does not know."""

TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "anna"},
    {
        "role": "assistant",
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "done"},
]


@pytest.fixture(params=["memory", *KINDS])
async def chats(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OpenStoredChats]:
    if request.param == "memory":
        yield OpenStoredChats()
        return
    is_sqlite = request.param == "sqlite"
    address = f"sqlite://{tmp_path / 'store.db'}" if is_sqlite else request.getfixturevalue("postgresql").url
    open_chats = OpenStoredChats(opened(address), 1000.0)
    yield open_chats
    await open_chats.close()


@pytest.fixture
async def client(service: Service, chats: OpenStoredChats) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(service, features=features_with(service, chats))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        yield client


async def create(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "store": True, **fields}
    response = await client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return response


async def listed(client: httpx.AsyncClient, **query: Any) -> list[str]:
    """Returns the ids of a list."""
    page = await client.get(PATH, params=query)
    assert page.status_code == 200, page.text
    return [each["id"] for each in page.json()["data"]]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}])
async def test_a_completion_is_fetched_updated_and_deleted(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    made = (await create(client, metadata={"topic": "sea"}, **fields)).json()
    path = f"{PATH}/{made['id']}"
    assert (await client.get(path)).json() == {**made, "metadata": {"topic": "sea"}}
    checked(ChatCompletion, (await client.get(path)).text, OURS)
    updated = await client.post(path, json={"metadata": {"topic": "land", "a": "b"}})
    assert updated.json() == {**made, "metadata": {"topic": "land", "a": "b"}} == (await client.get(path)).json()
    deleted = checked(ChatCompletionDeleted, (await client.delete(path)).text)
    assert (deleted.id, deleted.deleted) == (made["id"], True)
    for again in (
        await client.get(path),
        await client.delete(path),
        await client.post(path, json={"metadata": {}}),
        await client.get(f"{path}/messages"),
    ):
        assert made["id"] in error_of(again, 404)["message"]
    assert await listed(client) == []


@pytest.mark.parametrize("fields", [{}, {"n": 2}, {"logprobs": True}, {"stream_options": {"include_usage": True}}])
async def test_a_stream_is_stored_whole(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    text = (await create(client, stream=True, seed=1, **fields)).text
    assert text.endswith("data: [DONE]\n\n")
    whole = (await create(client, seed=1, **{name: fields[name] for name in fields if name != "stream_options"})).json()
    (first, _) = (await client.get(PATH)).json()["data"]
    assert f'"id":"{first["id"]}"' in text
    for changing in ("id", "created"):
        first.pop(changing), whole.pop(changing)
    assert first == {**whole, "metadata": {}}


async def test_a_stream_sends_the_same_as_without_store(client: httpx.AsyncClient) -> None:
    stored, other = [(await create(client, stream=True, store=store)).text.count("data: ") for store in (True, False)]
    assert stored == other


async def test_what_is_not_to_be_stored_is_not(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    for fields in ({"store": False}, {"store": None}, {"metadata": {"a": {"b": 1}}, "store": False}):
        await create(client, **fields)
    engine.breaks_after = 1
    await client.post(PATH, json={"messages": TALK[:1], "store": True, "stream": True})
    assert await listed(client) == []


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {"a" * 65: "b"}, {"a": "b" * 513}, ["a"], {str(i): "" for i in range(17)}]
)
async def test_metadata_that_cannot_be_stored_is_refused(client: httpx.AsyncClient, metadata: Any) -> None:
    body = {"messages": TALK[:1], "store": True, "metadata": metadata}
    assert error_of(await client.post(PATH, json=body), 400)["param"] == "metadata"


async def test_lists_come_in_pages_and_are_filtered(client: httpx.AsyncClient) -> None:
    ids = [
        (await create(client, metadata={"parity": str(number % 2), "a\0": f"{number}\0"})).json()["id"]
        for number in range(5)
    ]
    assert await listed(client) == ids
    assert await listed(client, order="desc", limit=2) == ids[:2:-1]
    assert await listed(client, order="desc", after=ids[3]) == ids[2::-1]
    page = (await client.get(PATH, params={"limit": 2, "after": ids[1]})).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[2], ids[3], True)
    assert await listed(client, **{"metadata[parity]": "1"}) == ids[1::2]
    assert await listed(client, **{"metadata[parity]": "0", "metadata[a\0]": "2\0"}) == [ids[2]]
    assert await listed(client, **{"metadata[parity]": "1", "metadata[a\0]": "2\0"}) == []
    assert await listed(client, model="counter", limit=1) == ids[:1]
    assert await listed(client, model="gpt\0") == []
    await client.post(f"{PATH}/{ids[0]}", json={"metadata": {"parity": "odd"}})
    assert await listed(client, **{"metadata[parity]": "odd"}) == ids[:1]
    assert await listed(client) == ids, "an update keeps the order"


async def test_lists_that_cannot_be(client: httpx.AsyncClient) -> None:
    await create(client)
    for name, value in (("limit", 0), ("limit", 101), ("order", "up"), ("after", "chatcmpl-0"), ("after", "\0")):
        assert error_of(await client.get(PATH, params={name: value}), 400)["param"] == name
    many = {f"metadata[{number}]": "" for number in range(17)}
    assert error_of(await client.get(PATH, params=many), 400)["param"] == "metadata"


async def test_messages_are_those_of_the_request(client: httpx.AsyncClient) -> None:
    made = (await create(client, messages=TALK)).json()["id"]
    path = f"{PATH}/{made}/messages"
    messages = (await client.get(path)).json()["data"]
    assert [message["id"] for message in messages] == [f"{made}-{place}" for place in range(4)]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool"]
    assert [message["content"] for message in messages] == ["be short", "one\ntwo", None, "done"]
    assert messages[1]["content_parts"] == TALK[1]["content"]
    assert (messages[0]["content_parts"], messages[1]["name"]) == (None, "anna")
    assert (messages[2]["tool_calls"], messages[3]["tool_call_id"]) == (TALK[2]["tool_calls"], "c")
    page = (await client.get(path, params={"limit": 3, "order": "desc"})).json()
    assert ([message["id"] for message in page["data"]], page["has_more"]) == ([f"{made}-{i}" for i in (3, 2, 1)], True)
    assert error_of(await client.get(path, params={"after": "x"}), 400)["param"] == "after"


async def test_an_unknown_id_is_not_found(client: httpx.AsyncClient) -> None:
    for unknown in ("x", "chatcmpl-%00", "chatcmpl-" + "0" * 32, "%ED%A0%80", "x" * 5000):
        for method, path in (("GET", ""), ("GET", "/messages"), ("DELETE", ""), ("POST", "")):
            body = {"metadata": {}} if method == "POST" else None
            response = await client.request(method, f"{PATH}/{unknown}{path}", json=body)
            assert "there is no stored chat completion" in error_of(response, 404)["message"]


async def test_tenants_see_their_own_completions_only(service: Service, chats: OpenStoredChats) -> None:
    access = Access(keys=ApiKeys(["alice:key-of-alice", "bob:key-of-bob"]))
    app = create_app(service, access, features_with(service, chats))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        client.headers["authorization"] = "Bearer key-of-alice"
        made = (await create(client, metadata={"a": "b"})).json()["id"]
        client.headers["authorization"] = "Bearer key-of-bob"
        assert await listed(client) == await listed(client, **{"metadata[a]": "b"}) == []
        for method, path in (("GET", ""), ("GET", "/messages"), ("DELETE", ""), ("POST", "")):
            body = {"metadata": {}} if method == "POST" else None
            error_of(await client.request(method, f"{PATH}/{made}{path}", json=body), 404)
        client.headers["authorization"] = "Bearer key-of-alice"
        assert await listed(client) == [made]


async def test_memory_keeps_the_newest_completions(service: Service) -> None:
    chats = OpenStoredChats()
    assert isinstance(chats.store, MemoryChats)
    chats.store._stored._max_entries = 2
    app = create_app(service, features=features_with(service, chats))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        ids = [(await create(client)).json()["id"] for _ in range(3)]
        assert await listed(client) == ids[1:]


# --- statements


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    database = opened(address, clocked=True)
    yield database
    database.close()


def fill(transaction: Transaction) -> None:
    """Stores 40 completions of each of 5 tenants, each a second after the one before."""
    for number in range(200):
        transaction.execute("UPDATE test_clock SET now = ?", 1000.0 + number)
        chat = StoredChat(f"c{number}", "model", b"{}", b"[]", {"parity": str(number % 2), "number": str(number)})
        chat_table.insert(transaction, f"t{number % 5}", chat)
    transaction.execute("ANALYZE")


def test_no_statement_scans_completions(database: Database) -> None:
    database.run_now(fill, writes=True)
    for only in (ChatFilter(), ChatFilter("model"), ChatFilter(None, {"parity": "1", "number": "1"})):
        for spec in (PageSpec(2), PageSpec(2, "c1", newest_first=True)):
            read = partial(chat_table.read_list, tenant="t1", spec=spec, only=only)
            assert scans_of(database, read) <= {"test_clock"}, (only, spec)
    for work in (
        partial(chat_table.set_metadata, tenant="t1", chat_id="c1", metadata={"a": "b"}),
        partial(expired, rows=chat_table.ROWS, bounds=Bounds(100.0, 10, 100)),
        partial(chat_table.delete_all, names=[("t1", "c1")]),
    ):
        assert scans_of(database, work) <= {"test_clock"}, work


def test_a_page_ends_before_it_takes_too_much(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_table, "MAX_PAGE_BYTES", 10)
    database.run_now(fill, writes=True)
    page = database.run_now(lambda each: chat_table.read_list(each, "t1", PageSpec(2), ChatFilter()))
    assert page is not None
    assert ([name for name, _ in page.items], page.has_more) == (["c1"], True)


def test_a_completion_is_stored_once(database: Database) -> None:
    chat = StoredChat("c", "model", b"{}", b"[]", {"a": "b"})
    for _ in range(2):
        database.run_now(lambda each: chat_table.insert(each, "", chat), writes=True)
    page = database.run_now(lambda each: chat_table.read_list(each, "", PageSpec(9), ChatFilter()))
    assert page is not None
    assert page.items == [("c", b'{,"metadata":{"a":"b"}}')]


async def test_old_completions_are_deleted(database: Database) -> None:
    database.run_now(fill, writes=True)
    await DurableChats(database, 150.0).expire()
    count = "SELECT count(*), (SELECT count(*) FROM roost_chat_metadata) FROM roost_chats"
    assert database.run_now(lambda each: each.rows(count)) == [(151, 302)]
    bounds = Bounds(1e6, 25, 10**9)
    found = database.run_now(lambda each: expired(each, chat_table.ROWS, bounds))
    assert sorted(found)[:3] == [("t0", "c50"), ("t0", "c55"), ("t0", "c60")]
    assert len(found) == 151 - 5 * 25


async def test_the_task_that_deletes_ends_with_the_server(address: str) -> None:
    chats = OpenStoredChats(opened(address), 1000.0)
    chats.start(lambda: None)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await chats.close()
    assert chats._task is not None
    assert chats._task.done()
