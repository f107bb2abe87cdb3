"""A store that is away: what is computed, what clients get, and what counts as usage."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from databases import opened
from fake_server import features_with, make_service, until
from roost.server.app import create_app
from roost.server.database.database import Database, Lane, Transaction
from roost.server.database.dialects import Sqlite
from roost.server.database.errors import StoreUnavailableError, WriteTooLargeError
from roost.server.errors.request_errors import WARNINGS_HEADER
from roost.server.features.responses.adoption import AdoptionKind
from roost.server.features.responses.conversations import CONVERSATIONS
from roost.server.features.responses.open_responses import OpenResponses
from roost.server.features.responses.response_store import ResponseStore
from roost.server.features.responses.response_table import Adoption
from roost.server.features.usage import usage_table
from roost.server.features.usage.open_usage import UsageCounter
from roost.server.storage.worker import Worker
from roost.server.text.served_model import ServedModel
from starlette.types import ASGIApp
from test_durable_responses import PacedEngine, events_of

HI = {"input": "hi", "max_output_tokens": 3}


class Fragile(Sqlite):
    """A database that cannot be reached while `is_away`."""

    is_away = False

    def connect(self) -> Any:
        if self.is_away:
            raise sqlite3.OperationalError("away")
        return super().connect()

    def run_all(self, connection: Any, statements: Any) -> Any:
        if self.is_away:
            raise sqlite3.OperationalError("away")
        return super().run_all(connection, statements)


@dataclass
class Server:
    """A server without a socket, whose store a test takes away."""

    dialect: Fragile
    engine: PacedEngine
    feature: OpenResponses
    responses: ResponseStore
    usage: UsageCounter
    client: httpx.AsyncClient
    app: ASGIApp
    adopter: Worker[Adoption]
    patch: pytest.MonkeyPatch

    async def respond(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/responses", json={**HI, **fields})

    async def conversation(self) -> str:
        return str((await self.client.post("/v1/conversations", json={})).json()["id"])

    def lose_store(self) -> None:
        """Takes the store away. Requests wait for it for a moment only."""
        self.dialect.is_away = True
        self._set_patience(0.1)

    def find_store(self) -> None:
        self.dialect.is_away = False
        self._set_patience(60.0)

    def _set_patience(self, seconds: float) -> None:
        for name in (
            "storage.objects.REPLY_S",
            "storage.worker._WRITE_S",
        ):
            self.patch.setattr(f"roost.server.{name}", seconds)

    async def used(self) -> tuple[int, int]:
        """Returns the numbers of requests and of generated tokens that count as usage, once the store is back."""
        self.find_store()
        await self.usage.flush(60.0)
        read = partial(usage_table.read, start="0", end="9", limit=100)
        rows = await self.usage._database.run(read)
        return sum(row.num_requests for *_, row in rows), sum(row.completion_tokens for *_, row in rows)

    async def respond_losing_store(self, fields: dict[str, Any]) -> httpx.Response:
        """Takes the store away between the first token of a response and its end, and returns the response."""
        self.engine.gate.clear()
        running = asyncio.create_task(self.respond(**fields))
        await until(lambda: self.engine.running)
        self.lose_store()
        self.engine.gate.set()
        return await running


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.server.database.database.PROBE_S", 0.01)
    monkeypatch.setattr("roost.server.database.database._PATIENCE_S", 0.05)


@asynccontextmanager
async def serving(path: str, model: ServedModel, patch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    engine, dialect = PacedEngine(), Fragile(path)
    service = make_service(engine, model)
    responses, usage = ResponseStore(Database(dialect), 1000.0), UsageCounter(Database(dialect))
    service.metrics.requests.observers.append(usage)
    feature = OpenResponses(service, responses)
    app = create_app(service, features=features_with(service, feature))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost", timeout=60) as client:
        adopter = Worker(AdoptionKind(service, responses), responses.leases)
        yield Server(dialect, engine, feature, responses, usage, client, app, adopter, patch)
    dialect.is_away = False
    await responses.close()
    usage._database.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "store.db")
    opened(f"sqlite://{path}").close()
    return path


@pytest.fixture
async def server(path: str, model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    async with serving(path, model, monkeypatch) as server:
        yield server


DETECTIONS: dict[str, Callable[[ResponseStore], Awaitable[Any]]] = {
    "a read": lambda responses: responses.find(f"resp_{'0' * 32}"),
    "a write": lambda responses: responses.conversations.write(CONVERSATIONS.hide, f"conv_{0:032}"),
    "a lease": lambda responses: responses.leases.renew(),
}


async def detect(server: Server, how: str) -> None:
    """Takes the store away, which one kind of transactions notices, unless its caller has given up before it began."""
    server.lose_store()
    for _ in range(100):
        with suppress(StoreUnavailableError):
            await DETECTIONS[how](server.responses)
        if not server.responses.database.is_available:
            return
    raise AssertionError("nothing noticed that the store is away")


@pytest.mark.parametrize("how", DETECTIONS)
async def test_nothing_is_computed_that_is_known_not_to_be_stored(server: Server, how: str) -> None:
    """Requests that need no store go on."""
    conversation = await server.conversation()
    await detect(server, how)
    for fields in ({}, {"store": True}, {"stream": True}, {"background": True}, {"conversation": conversation}):
        refused = await server.respond(**fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable"), fields
        assert refused.headers["retry-after"] == "1"
    refused = await server.respond(conversation=conversation, store=False)
    assert refused.status_code == 503
    assert (await server.client.get(f"/v1/responses/resp_{'0' * 32}")).status_code == 503
    assert not server.engine.requests
    assert (await server.respond(store=False)).status_code == 200
    assert await server.used() == (1, 3)


@pytest.mark.parametrize("how", DETECTIONS)
async def test_an_idle_server_serves_the_first_request_after_the_store_is_back(
    server: Server, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that writes finds out, without any other request."""
    await detect(server, how)
    assert (await server.respond()).status_code == 503
    monkeypatch.setattr("roost.server.database.database._PATIENCE_S", 60.0)
    server.find_store()
    response = await server.respond()
    assert (response.status_code, response.json()["store"]) == (200, True)
    assert (await server.client.get(f"/v1/responses/{response.json()['id']}")).json() == response.json()


async def test_a_store_that_can_only_be_read_is_not_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Transaction) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr(server.responses.database, "probe", refuse)
    await detect(server, "a write")
    server.find_store()
    await server.responses.find(f"resp_{'0' * 32}")
    assert (await server.respond()).status_code == 503
    assert not server.engine.requests


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_nobody_asked_to_store_is_sent_without(server: Server, stream: bool) -> None:
    """It says so, and counts once."""
    response = await server.respond_losing_store({"stream": stream})
    assert response.status_code == 200
    last = events_of(response.text)[-1]["response"] if stream else response.json()
    assert (last["status"], last["store"], last["usage"]["output_tokens"]) == ("incomplete", False, 3)
    assert stream or response.headers[WARNINGS_HEADER] == "store%3A the response could not be stored"
    assert await server.used() == (1, 3)
    assert (await server.client.get(f"/v1/responses/{last['id']}")).status_code == 404
    assert len(server.engine.requests) == 1


async def test_an_answer_that_is_too_large_to_store_is_sent_without(server: Server) -> None:
    async def refuse(*_: Any) -> bytes:
        raise WriteTooLargeError("too large")

    server.patch.setattr(server.responses, "keep", refuse)
    response = await server.respond()
    assert (response.status_code, response.json()["store"]) == (200, False)


@pytest.mark.parametrize("fields", [{"store": True}, {"conversation": ""}, {"conversation": "", "store": False}])
async def test_an_answer_that_must_be_stored_is_an_error_that_no_client_repeats(
    server: Server, fields: dict[str, Any]
) -> None:
    """It does not count as usage. Proxies pass its status on, as deploy/proxies configures them."""
    if "conversation" in fields:
        fields = {**fields, "conversation": await server.conversation()}
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app))
    api = openai.AsyncOpenAI(base_url="http://roost/v1", api_key="none", http_client=http, max_retries=2)
    server.engine.gate.clear()
    running = asyncio.create_task(api.responses.create(**HI, **fields))
    await until(lambda: server.engine.running)
    server.lose_store()
    server.engine.gate.set()
    with pytest.raises(openai.APIStatusError) as caught:
        await running
    await api.close()
    assert (caught.value.status_code, caught.value.code) == (507, "response_not_stored")
    assert len(server.engine.requests) == 1
    assert await server.used() == (0, 0)


async def test_a_stream_that_must_be_stored_ends_with_an_error(server: Server) -> None:
    response = await server.respond_losing_store({"stream": True, "store": True})
    last = events_of(response.text)[-1]
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
    assert "could not be stored" in last["response"]["error"]["message"]
    assert await server.used() == (0, 0)


@pytest.mark.parametrize("how", ["the store is away", "it writes first", "it looks first", "another one cancels"])
async def test_a_background_response_that_its_owner_loses_counts_once(
    server: Server, path: str, model: ServedModel, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it where it ends; a cancelled one where it was generated."""
    server.engine.allowed = 2
    made = (await server.respond(background=True)).json()
    (log,) = server.responses.logs.values()
    await until(lambda: log.num_committed == 2)
    async with serving(path, model, monkeypatch) as other:
        if how == "the store is away":
            server.lose_store()
            with monkeypatch.context() as patch:
                patch.setattr("roost.server.features.responses.response_store._OWNER_S", 0.1)
                server.engine.allowed = 1000
                await until(lambda: not server.feature.is_busy)
            server.find_store()
        if how == "another one cancels":
            commit = other.responses._commits.write

            async def then_the_owner_writes(*arguments: Any) -> Any:
                done = await commit(*arguments)
                server.engine.allowed = 1000
                await until(lambda: not server.feature.is_busy)
                return done

            monkeypatch.setattr(other.responses._commits, "write", then_the_owner_writes)
            assert (await other.client.post(f"/v1/responses/{made['id']}/cancel")).json()["status"] == "cancelled"
        else:
            await other.responses.database.run(expire_leases, lane=Lane.COMMITS)
            await other.adopter.look()
            await until(lambda: not other.adopter._open)
            assert (await other.client.get(f"/v1/responses/{made['id']}")).json()["status"] == "incomplete"
        if how == "it looks first":
            await server.adopter.look()
        server.engine.allowed = 1000
        await until(lambda: not server.feature.is_busy)
        await server.used()
        assert await other.used() == (1, 3)


def expire_leases(transaction: Transaction) -> None:
    transaction.execute("UPDATE roost_running SET lease_until = 0")
