"""What a tenant stores: its share of each transaction, and its oldest rows that make room in the same transaction."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from threading import Event
from typing import Any

import httpx
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, make_service, until
from roost.server.app import create_app
from roost.server.database.database import Database, Lane, Transaction
from roost.server.features.responses import response_table
from roost.server.features.responses.conversations import ConversationRecord
from roost.server.features.responses.open_responses import OpenResponses
from roost.server.features.responses.response_store import ResponseStore
from roost.server.http.auth import Access, ApiKeys
from roost.server.storage import objects
from roost.server.storage.objects import Bounds
from roost.server.tenants import tenant
from roost.server.text.served_model import ServedModel
from test_conversations import conversation, message, reference

MIB = 2**20

KEYS = Access(keys=ApiKeys(["alice:key-of-alice", "bob:key-of-bob"]))

SIZES = """
    SELECT (SELECT coalesce(sum(num_bytes), 0) FROM roost_conversations),
        (SELECT coalesce(sum(num_bytes), 0) FROM roost_responses),
        (SELECT count(*) FROM roost_conversations WHERE updated > 0), (SELECT count(*) FROM roost_responses)
"""


class Written:
    """What is added in each transaction.

    Attributes:
      num_bytes: Bytes of items by tenant, for each transaction.
      num_rows: Items and conversations by tenant, for each transaction.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num_bytes: list[Counter[str]] = []
        self.num_rows: list[Counter[str]] = []
        self.limits: Bounds | None = None
        execute = Transaction.execute

        def run_all(transaction: Transaction, works: Sequence[Any], bounds: Bounds) -> list[Any]:
            self.num_bytes.append(Counter())
            self.num_rows.append(Counter())
            return response_table.run_all(transaction, works, self.limits or bounds)

        def noted(transaction: Transaction, sql: str, *values: Any) -> Any:
            if "INSERT INTO roost_conversations" in sql:
                self.num_rows[-1][values[0]] += 1
            if "INSERT INTO roost_conversation_items" in sql:
                self.num_bytes[-1][values[0]] += sum(len(value) for value in values if isinstance(value, bytes))
                self.num_rows[-1][values[0]] += len(values) // 5
            return execute(transaction, sql, *values)

        monkeypatch.setattr("roost.server.features.responses.response_store.run_all", run_all)
        monkeypatch.setattr(Transaction, "execute", noted)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(monkeypatch)


@pytest.fixture
def database(address: str) -> Database:
    return opened(address)


@pytest.fixture
async def store(database: Database, written: Written) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(database, 1e6)
    yield store
    await store.close()


@pytest.fixture
async def client(engine: FakeEngine, model: ServedModel, store: ResponseStore) -> AsyncIterator[httpx.AsyncClient]:
    service = make_service(engine, model)
    app = create_app(service, KEYS, features_with(service, OpenResponses(service, store)))
    headers = {"authorization": "Bearer key-of-alice"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://roost", headers=headers, timeout=60) as client:
        yield client


def sizes(database: Database) -> tuple[int, ...]:
    """Returns the bytes of conversations and of responses, and how many there are."""
    (row,) = database.run_now(lambda each: each.rows(SIZES))
    return tuple(map(int, row))


async def test_heavy_writes_of_a_tenant_leave_room_for_others(
    client: httpx.AsyncClient,
    database: Database,
    store: ResponseStore,
    written: Written,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six small requests store half a megabyte each, and three store little, while another transaction runs."""
    path = await conversation(client, items=[message("x" * 25_000)])
    named = reference((await client.get(f"{path}/items")).json()["data"][0])
    may_end, queued, write = Event(), list[str](), store._commits.write

    async def noted(*args: Any, **options: Any) -> Any:
        queued.append(tenant.get())
        return await write(*args, **options)

    monkeypatch.setattr(store._commits, "write", noted)
    holding = asyncio.create_task(database._pool.workers[Lane.COMMITS].run(may_end.wait))
    heavy = [asyncio.create_task(client.post("/v1/conversations", json={"items": [named] * 20})) for _ in range(6)]
    await until(lambda: queued)
    bob = {"authorization": "Bearer key-of-bob"}
    small = [asyncio.create_task(client.post("/v1/conversations", json={}, headers=bob)) for _ in range(3)]
    await until(lambda: len(queued) == 9)
    written.num_bytes.clear()
    written.num_rows.clear()
    may_end.set()
    await holding
    assert [each.status_code for each in await asyncio.gather(*small, *heavy)] == [200] * 9
    assert sum(rows["bob"] for rows in written.num_rows[:2]) == 3, "the first may have waited for the thread already"
    assert sum(rows["alice"] for rows in written.num_rows) == 6 * 21
    assert max(num_bytes["alice"] for num_bytes in written.num_bytes) <= MIB
    assert max(rows["alice"] for rows in written.num_rows) <= 256


async def test_the_oldest_conversations_make_room_in_the_same_transaction(
    client: httpx.AsyncClient, database: Database, written: Written
) -> None:
    written.limits = Bounds(max_bytes=40_000)
    paths = []
    for _ in range(8):
        paths.append(await conversation(client, items=[message("x" * 10_000)]))
        assert sizes(database)[0] <= 40_000
    statuses = [(await client.get(path)).status_code for path in paths]
    assert statuses == [404] * 5 + [200] * 3
    assert (await client.post(f"{paths[5]}/items", json={"items": [message("y" * 10_000)]})).status_code == 200
    assert sizes(database)[0] <= 40_000
    assert [(await client.get(path)).status_code for path in paths[5:]] == [200, 404, 200]
    written.limits = Bounds(max_rows=2)
    bob = {"authorization": "Bearer key-of-bob"}
    assert (await client.post("/v1/conversations", json={}, headers=bob)).status_code == 200
    await conversation(client)
    assert sizes(database)[2] == 3, "two of one tenant, and one of the other"


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"background": True}])
async def test_the_oldest_responses_make_room_in_the_same_transaction(
    client: httpx.AsyncClient, database: Database, written: Written, fields: dict[str, Any]
) -> None:
    written.limits = Bounds(max_bytes=40_000)

    async def respond() -> str:
        body = {"input": "x" * 10_000, "max_output_tokens": 1, **fields}
        response = await client.post("/v1/responses", json=body)
        assert response.status_code == 200, response.text
        response_id = f"resp_{response.text.partition('resp_')[2][:32]}"
        async with asyncio.timeout(60):
            while '"in_progress"' in (await client.get(f"/v1/responses/{response_id}")).text:
                await asyncio.sleep(0.005)
        return response_id

    made = []
    for _ in range(5):
        made.append(await respond())
        assert sizes(database)[1] <= 40_000
    assert [(await client.get(f"/v1/responses/{each}")).status_code for each in made] == [404] * 2 + [200] * 3
    written.limits = Bounds(max_rows=2)
    await respond()
    assert sizes(database)[3] == 2


async def test_items_of_a_deleted_conversation_are_removed_some_at_a_time(
    client: httpx.AsyncClient, database: Database, store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing finds them any more. Each addition removes some, and the rest is removed later."""
    monkeypatch.setattr(objects, "MAX_REMOVED", 4)
    path = await conversation(client, items=[message("x")] * 20)
    (item,) = (await client.get(f"{path}/items?limit=1")).json()["data"]
    count = "SELECT (SELECT count(*) FROM roost_conversation_items), (SELECT count(*) FROM roost_conversations)"

    def left() -> tuple[int, ...]:
        return tuple(database.run_now(lambda each: each.rows(count))[0])

    assert (await client.delete(path)).status_code == 200
    assert left() == (20, 1)
    for method, url in (("GET", path), ("GET", f"{path}/items"), ("GET", f"{path}/items/{item['id']}")):
        assert (await client.request(method, url)).status_code == 404
    name = path.rpartition("/")[2]
    for body in ({"input": [reference(item)]}, {"input": "a", "conversation": name}):
        for route in ("/v1/responses", "/v1/responses/input_tokens"):
            assert (await client.post(route, json=body)).status_code == 404
    assert (await client.post(f"{path}/items", json={"items": [message("y")]})).status_code == 404
    for num_items in (16, 12):
        await conversation(client)
        assert left()[0] == num_items
    await store.expire()
    assert left() == (0, 2)


async def test_a_conversation_of_another_tenant_is_kept(database: Database, store: ResponseStore) -> None:
    """Each tenant makes room for itself."""
    for owner in ("a", "b"):
        tenant.set(owner)
        for number in range(3):
            record = ConversationRecord(owner, f"conv_{number:032}", 1, b"{}")
            await store.conversations.create(record, [])
    database.run_now(lambda each: response_table.make_room(each, "a", Bounds(), response_table.BOUNDED), writes=True)
    assert sizes(database)[2] == 6


async def test_a_history_that_is_too_long_to_be_stored_is_refused_before_anything_is_generated(
    client: httpx.AsyncClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.server.features.responses.routes.MAX_HISTORY", 1000)
    body = {"input": "x" * 2000, "max_output_tokens": 1}
    refused = await client.post("/v1/responses", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (413, "input")
    assert not engine.requests
    assert (await client.post("/v1/responses", json={**body, "store": False})).status_code == 200
