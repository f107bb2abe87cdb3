"""What lines of batches may cost a replica: the event loop's time and memory."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, features_with, make_service, until
from roost.engine import EngineStats
from roost.server.app import create_app
from roost.server.features.batches.batch_lines import max_line_bytes
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.batch_worker import _MAX_CLAIMS, _MAX_LONGEST, BatchWorker
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.http import routes
from roost.server.http.json_limits import LONG_BYTES
from roost.server.text.served_model import ServedModel

MAX_BODY = 2**16
"""Maximum bytes of a body here. Requests may hold 256 times as much, and parsed bodies of lines half of that."""

SLOTS = 64


class WideEngine(FakeEngine):
    """An engine with more slots."""

    @property
    def stats(self) -> EngineStats:
        return replace(super().stats, num_preemptible_slots=SLOTS, slots=SLOTS)


@pytest.fixture
def engine() -> FakeEngine:
    return WideEngine(VOCAB_SIZE)


@pytest.fixture
async def batches(engine: FakeEngine, model: ServedModel, tmp_path: Path) -> AsyncIterator[OpenBatches]:
    store = BatchStore(opened(f"sqlite://{tmp_path / 'store.db'}"), 1000.0)
    yield OpenBatches(make_service(engine, model), store)
    store.close()


@pytest.fixture
async def client(batches: OpenBatches) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(
        create_app(batches.service, features=features_with(batches.service, batches), max_body_bytes=MAX_BODY)
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client


@asynccontextmanager
async def working(batches: OpenBatches) -> AsyncIterator[BatchWorker]:
    """Runs a replica's worker in the background of a test."""
    features = features_with(batches.service, batches)
    app = create_app(batches.service, features=features, max_body_bytes=MAX_BODY, max_kept_bytes=0)
    assert batches.store is not None
    worker = BatchWorker(batches.service, app, batches.store, MAX_BODY, max_kept_bytes=0)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def line(number: int, prompt: Any) -> bytes:
    body = {"prompt": prompt, "max_tokens": 2}
    return orjson.dumps({"custom_id": f"line {number}", "method": "POST", "url": "/v1/completions", "body": body})


def long_lines(count: int) -> bytes:
    """Returns lines of 60 KB whose parsed prompts take ten times as much."""
    return b"\n".join(line(number, [300] * 15_000) for number in range(count))


async def started(client: httpx.AsyncClient, content: bytes, window: str = "24h") -> str:
    file = (await client.post("/v1/files", data={"purpose": "batch"}, files={"file": content})).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": window}
    batch: str = (await client.post("/v1/batches", json=body)).json()["id"]
    return batch


async def ended(client: httpx.AsyncClient, batch_id: str) -> Any:
    async with asyncio.timeout(60):
        while (batch := (await client.get(f"/v1/batches/{batch_id}")).json())["status"] == "in_progress":
            await asyncio.sleep(0.02)
    return batch


async def failures(client: httpx.AsyncClient, batch: Any) -> list[Any]:
    """Returns ids, codes and messages of lines that failed."""
    content = (await client.get(f"/v1/files/{batch['error_file_id']}/content")).text
    found = [json.loads(each) for each in content.splitlines()]
    return [(each["custom_id"], each["error"]["code"], each["error"]["message"]) for each in found]


def change(batches: OpenBatches, statement: str, *values: Any) -> None:
    assert batches.store is not None
    batches.store._database.run_now(lambda each: each.execute(statement, *values), writes=True)


@pytest.fixture
def parsing_threads(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Threads on which long JSON was parsed, by any of the parsers."""
    threads: list[threading.Thread] = []

    def watched(parse: Callable[..., Any]) -> Callable[..., Any]:
        def noted(raw: Any, **options: Any) -> Any:
            if len(raw) >= LONG_BYTES:
                threads.append(threading.current_thread())
            return parse(raw, **options)

        return noted

    monkeypatch.setattr("orjson.loads", watched(orjson.loads))
    monkeypatch.setattr(routes, "from_json", watched(routes.from_json))
    return threads


@pytest.mark.parametrize("is_expired", [False, True])
async def test_no_long_line_is_parsed_on_the_event_loop(
    client: httpx.AsyncClient, batches: OpenBatches, parsing_threads: list[threading.Thread], is_expired: bool
) -> None:
    """Neither when it is uploaded, nor when it is claimed, nor as a body of its own."""
    batch = await started(client, long_lines(16))
    if is_expired:
        change(batches, "UPDATE roost_batches SET expires = 0")
    async with working(batches):
        assert (await ended(client, batch))["request_counts"]["failed"] == (16 if is_expired else 0)
    assert len(parsing_threads) == (32 if is_expired else 48)
    assert threading.main_thread() not in parsing_threads


async def test_lines_wait_for_memory(client: httpx.AsyncClient, batches: OpenBatches, engine: FakeEngine) -> None:
    """No more lines are claimed than memory takes, and no more sent than it takes when they are parsed."""
    engine.gate.clear()
    batch = await started(client, long_lines(60))
    async with working(batches) as worker:
        room = worker._parsed_bytes
        await until(lambda: room._waiting and len(engine.running) + len(room._waiting) == len(worker._open), 60)
        await until(lambda: not worker._num_fitting(), 60)
        assert worker._num_bytes <= _MAX_LONGEST * max_line_bytes(MAX_BODY)
        assert room.num_bytes <= 256 * MAX_BODY // 2
        assert 10 <= len(engine.running) < len(worker._open) < 60
        engine.gate.set()
        assert (await ended(client, batch))["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
        await until(lambda: not worker._open, 60)
        assert (worker._num_bytes, room.num_bytes) == (0, 0)
    assert len(engine.requests) == 60  # none was refused and sent again


async def test_a_line_that_ends_replicas_is_not_touched(client: httpx.AsyncClient, batches: OpenBatches) -> None:
    """Not even parsed, which may be what ends them. Its `custom_id` is read if the line begins with it."""
    batch = await started(client, line(0, "a"))
    assert batches.store is not None
    await batches.store.claim(batches.service.model.identity, 1)
    change(batches, "UPDATE roost_batch_claims SET owner = 'dead', num_claims = ?, lease_until = 0", _MAX_CLAIMS)
    change(batches, "UPDATE roost_file_lines SET line = ?", b'{"custom_id": "cut", "body": [[[[')
    async with working(batches):
        found = await failures(client, await ended(client, batch))
    assert found == [("cut", "server_error", f"{_MAX_CLAIMS} replicas began this line and did not end it")]


async def test_a_long_line_of_another_server_is_not_parsed(
    client: httpx.AsyncClient, batches: OpenBatches, parsing_threads: list[threading.Thread]
) -> None:
    """Replicas may have other settings, and older versions took longer lines."""
    batch = await started(client, line(0, "a"))
    change(batches, "UPDATE roost_file_lines SET line = ?", b'{"custom_id": "long", "body": ' + b"[" * 2**17)
    async with working(batches):
        found = await failures(client, await ended(client, batch))
    assert found == [("long", "invalid_line", "the line is longer than 73728 bytes, as --max-body-bytes is 65536")]
    assert not parsing_threads
