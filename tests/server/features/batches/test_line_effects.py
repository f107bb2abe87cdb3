"""Lines of /v1/responses that run again, since their replica died after the response was stored and before the line."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, features_with, make_service, until
from roost.server.app import create_app
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, dialect_of
from roost.server.database.errors import StoreFullError, StoreUnavailableError
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.batch_table import LineClaim
from roost.server.features.batches.line_worker import LineKind
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.features.responses.open_responses import OpenResponses
from roost.server.features.responses.response_store import ResponseStore
from roost.server.storage.worker import Worker
from roost.server.text.served_model import ServedModel

NUM_LINES = 3

FIELDS: dict[str, dict[str, Any]] = {
    "stored": {},
    "stored in a conversation": {"conversation": True},
    "in a conversation only": {"conversation": True, "store": False},
}

MOMENTS = ("before the response's commit", "after the response's commit", "before the line's commit")


@dataclass
class Replica:
    """A server without a socket, and its worker of lines.

    Attributes:
      held: Calls that wait for `gate` at the moment at which the replica stops.
    """

    engine: FakeEngine
    responses: ResponseStore
    batches: BatchStore
    worker: Worker[LineClaim]
    client: httpx.AsyncClient
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    held: list[str] = field(default_factory=list)

    def stop_at(self, moment: str) -> None:
        """Lets all work wait at a moment, for ever unless `gate` is opened."""
        if moment == "before the line's commit":
            places: list[tuple[Any, str]] = [(self.batches, "end")]
        else:
            places = [(self.responses, "keep"), (self.responses.conversations, "end")]
        for owner, name in places:
            setattr(owner, name, self._stopping(getattr(owner, name), is_after=moment.startswith("after")))

    def _stopping(self, work: Callable[..., Any], *, is_after: bool) -> Callable[..., Any]:
        async def stop(*arguments: Any) -> Any:
            done = await work(*arguments) if is_after else None
            self.held.append(work.__name__)
            await self.gate.wait()
            return done if is_after else await work(*arguments)

        return stop

    async def dies(self, address: str) -> None:
        """Ends the loops of the worker, and all of its leases. Its lines stay where they wait."""
        for task in self.worker._tasks:
            task.cancel()
        await asyncio.gather(*self.worker._tasks, return_exceptions=True)
        execute(address, "UPDATE roost_lines SET owner = NULL, lease_until = 0")

    async def conversation_items(self, conversation: str) -> list[dict[str, Any]]:
        listed = await self.client.get(f"/v1/conversations/{conversation}/items?order=asc&limit=100")
        return list(listed.json()["data"])


@asynccontextmanager
async def replica(address: str, model: ServedModel) -> AsyncIterator[Replica]:
    engine = FakeEngine(VOCAB_SIZE)
    service = make_service(engine, model)
    responses, batches = ResponseStore(database(address), 1e6), BatchStore(database(address), 1e6)
    features = features_with(service, OpenBatches(service, batches), OpenResponses(service, responses))
    app = create_app(service, features=features)
    worker = Worker(LineKind(service, app, batches), batches.leases, batches.has_work)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost", timeout=60) as client:
        yield Replica(engine, responses, batches, worker, client)
    for task in [*worker._tasks, *worker._open.values()]:
        task.cancel()
    await asyncio.gather(*worker._tasks, *worker._open.values(), return_exceptions=True)
    await responses.close()
    batches.close()


@pytest.fixture
def address(tmp_path: Path) -> str:
    address = f"sqlite://{tmp_path / 'store.db'}"
    opened(address).close()
    return address


@pytest.fixture
async def replicas(address: str, model: ServedModel) -> AsyncIterator[tuple[Replica, Replica]]:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(replica(address, model)) for _ in range(2)]
        yield first, second


def database(address: str) -> Database:
    return Database(dialect_of(StoreAddress.parse(address)))


def execute(address: str, sql: str) -> list[tuple[Any, ...]]:
    found = database(address)
    rows: list[tuple[Any, ...]] = found.run_now(lambda each: each.execute(sql).fetchall(), writes=True)
    found.close()
    return rows


async def started(replica: Replica, fields: dict[str, Any]) -> tuple[str, list[str]]:
    """Creates a batch; returns its id, and the conversation of each line if the lines have one."""
    num_conversations = NUM_LINES if fields.get("conversation") else 0
    made = [await replica.client.post("/v1/conversations", json={}) for _ in range(num_conversations)]
    conversations, lines = [each.json()["id"] for each in made], []
    for number in range(NUM_LINES):
        body = {"input": f"number {number}", "max_output_tokens": 3, **fields}
        body |= {"conversation": conversations[number]} if conversations else {}
        lines.append(json.dumps({"custom_id": f"{number}", "method": "POST", "url": "/v1/responses", "body": body}))
    content = "\n".join(lines).encode()
    file = (await replica.client.post("/v1/files", data={"purpose": "batch"}, files={"file": content})).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/responses", "completion_window": "24h"}
    return (await replica.client.post("/v1/batches", json=body)).json()["id"], conversations


async def ended(replica: Replica, batch_id: str) -> list[dict[str, Any]]:
    """Returns the responses of a batch's lines, once all have ended well."""
    async with asyncio.timeout(60):
        while (batch := (await replica.client.get(f"/v1/batches/{batch_id}")).json())["status"] == "in_progress":
            await asyncio.sleep(0.02)
    assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    content = (await replica.client.get(f"/v1/files/{batch['output_file_id']}/content")).text
    lines = sorted(map(json.loads, content.splitlines()), key=lambda line: line["custom_id"])
    assert [line["custom_id"] for line in lines] == [str(number) for number in range(NUM_LINES)]
    return [line["response"]["body"] for line in lines]


def text_of(response: dict[str, Any]) -> str:
    return str(response["output"][0]["content"][0]["text"])


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
async def test_lines_whose_replica_dies_act_once(
    replicas: tuple[Replica, Replica], address: str, fields: dict[str, Any], moment: str
) -> None:
    """Each is one response, and one turn of its conversation. What is stored is not generated again."""
    first, second = replicas
    first.stop_at(moment)
    batch_id, conversations = await started(first, fields)
    first.worker.start()
    await until(lambda: len(first.held) == NUM_LINES)
    await first.dies(address)
    second.worker.start()
    responses = await ended(second, batch_id)
    stored = fields.get("store", True)
    assert execute(address, "SELECT count(*) FROM roost_responses") == [(NUM_LINES if stored else 0,)]
    for number, response in enumerate(responses):
        kept = await second.client.get(f"/v1/responses/{response['id']}")
        assert kept.status_code == (200 if stored else 404)
        assert not stored or kept.json() == response
        if conversations:
            said, answer = await second.conversation_items(conversations[number])
            assert (said["content"][0]["text"], answer) == (f"number {number}", response["output"][0])
    if stored and moment != MOMENTS[0]:
        assert not second.engine.requests
    else:
        asked = [
            Counter((tuple(each.prompt_token_ids), each.params.seed) for each in replica.engine.requests)
            for replica in replicas
        ]
        assert asked[0] == asked[1], "the turn that is there is no part of the prompt, and the seed is the same"


@pytest.mark.parametrize(("fields", "text"), [("stored", "aaa"), ("stored in a conversation", "bbb")])
async def test_a_line_that_two_replicas_run_has_the_response_that_is_stored(
    replicas: tuple[Replica, Replica], address: str, fields: str, text: str
) -> None:
    """The first has lost its lease, and stores the response before the second one, which ends the line.

    In a conversation, it has lost its turn, too, and stores nothing.
    """
    first, second = replicas
    for each, says in zip(replicas, ([4], [5]), strict=True):
        each.stop_at(MOMENTS[0])
        each.engine.says = says * 3
    batch_id, conversations = await started(first, FIELDS[fields])
    first.worker.start()
    await until(lambda: len(first.held) == NUM_LINES)
    await first.dies(address)
    second.worker.start()
    await until(lambda: len(second.held) == NUM_LINES)
    first.gate.set()
    await until(lambda: not first.worker._open)
    second.gate.set()
    responses = await ended(second, batch_id)
    assert [text_of(response) for response in responses] == [text] * NUM_LINES
    for response in responses:
        assert (await second.client.get(f"/v1/responses/{response['id']}")).json() == response
    for conversation, response in zip(conversations, responses, strict=bool(conversations)):
        _, answer = await second.conversation_items(conversation)
        assert answer == response["output"][0]


async def test_a_line_whose_response_cannot_be_stored_runs_again(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not fail for that."""
    first, _ = replicas
    keep, failures = first.responses.keep, iter([StoreUnavailableError("away"), StoreFullError("full")])

    async def fail(*arguments: Any) -> bytes:
        for error in failures:
            raise error
        return await keep(*arguments)

    monkeypatch.setattr(first.responses, "keep", fail)
    batch_id, _ = await started(first, {"store": True})
    first.worker.start()
    responses = await ended(first, batch_id)
    assert [response["store"] for response in responses] == [True] * NUM_LINES
    assert len(first.engine.requests) == NUM_LINES + 2
