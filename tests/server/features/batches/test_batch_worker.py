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
from batch_workers import lines_of
from databases import opened
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, features_with, limited, make_service, until
from pydantic_core import from_json
from roost.engine import EngineStats
from roost.server.app import create_app
from roost.server.features.batches.batch_lines import max_line_bytes
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.batch_table import LineClaim
from roost.server.features.batches.line_worker import MAX_LONGEST, LineKind
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.generation import admission
from roost.server.schemas import json_limits
from roost.server.schemas.json_limits import LONG_BYTES
from roost.server.storage.claims import Places
from roost.server.storage.worker import Worker
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
    store = BatchStore(opened(f"sqlite://{tmp_path / 'store.db'}"), 86400.0)
    yield OpenBatches(limited(make_service(engine, model), MAX_BODY), store)
    store.close()


@asynccontextmanager
async def working(batches: OpenBatches) -> AsyncIterator[Worker[LineClaim]]:
    """Runs a replica's worker in the background of a test."""
    features = features_with(batches.service, batches)
    app = create_app(batches.service, features=features)
    worker = Worker(LineKind(batches.service, app, batches.store), batches.store.leases, batches.store.has_work)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def line(number: int, prompt: Any, **fields: Any) -> bytes:
    body = {"prompt": prompt, "max_tokens": 2, **fields}
    return orjson.dumps({"custom_id": f"line {number}", "method": "POST", "url": "/v1/completions", "body": body})


def long_lines(count: int) -> bytes:
    """Returns lines of 60 KB whose parsed prompts take ten times as much."""
    return b"\n".join(line(number, [300] * 15_000) for number in range(count))


async def started(client: httpx.AsyncClient, content: bytes, window: str = "24h") -> str:
    file = (await client.post("/v1/files", data={"purpose": "batch"}, files={"file": content})).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": window}
    return (await client.post("/v1/batches", json=body)).json()["id"]


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

    for module in (admission, json_limits):
        monkeypatch.setattr(module, "from_json", watched(from_json))
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
    """No more lines are claimed than memory takes, and no more run than it takes when they are parsed."""
    engine.gate.clear()
    batch = await started(client, long_lines(60))
    async with working(batches) as worker:
        await until(lambda: len(engine.running) >= 10 and not lines_of(worker).num_fitting, 60)
        assert lines_of(worker).num_bytes <= MAX_LONGEST * max_line_bytes(MAX_BODY)
        assert len(engine.running) <= len(worker._open) < 60
        engine.gate.set()
        assert (await ended(client, batch))["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
        await until(lambda: not worker._open, 60)
        assert lines_of(worker).num_bytes == 0
    assert len(engine.requests) == 60  # none was refused and sent again


async def test_no_attempt_is_thrown_away_for_lack_of_memory(
    client: httpx.AsyncClient, batches: OpenBatches, engine: FakeEngine
) -> None:
    """The copies of the prompt in an answer take 6 MB, and all requests together may take 16 MiB."""
    content = b"\n".join(line(number, [300] * 1500, echo=True, logprobs=5) for number in range(16))
    batch = await started(client, content)
    async with working(batches):
        assert (await ended(client, batch))["request_counts"] == {"total": 16, "completed": 16, "failed": 0}
    assert batches.store.leases.num_refusals == 0
    assert len(engine.requests) == 16


async def test_a_line_that_ends_replicas_is_not_touched(client: httpx.AsyncClient, batches: OpenBatches) -> None:
    """Not even parsed, which may be what ends them."""
    batch = await started(client, line(0, "a"))
    model, claim = batches.service.model.identity, batches.store.lines.claim
    await batches.store.leases.write(lambda each: claim(each, "dead", model, Places(1, 1)))
    deaths = "num_deaths = 4, num_lone_deaths = 2, lone_fence = fence"
    change(batches, f"UPDATE roost_lines SET owner = 'dead', {deaths}, lease_until = 0")
    change(batches, "UPDATE roost_file_lines SET line = ?", b'{"custom_id": "cut", "body": [[[[')
    async with working(batches):
        found = await failures(client, await ended(client, batch))
    assert found == [(None, "server_error", "3 replicas that ran line 1 alone ended before it did")]


async def test_a_long_line_of_another_server_is_not_parsed(
    client: httpx.AsyncClient, batches: OpenBatches, parsing_threads: list[threading.Thread]
) -> None:
    """Replicas may have other settings, and older versions took longer lines."""
    batch = await started(client, line(0, "a"))
    change(batches, "UPDATE roost_file_lines SET line = ?", b'{"custom_id": "long", "body": ' + b"[" * 2**17)
    async with working(batches):
        found = await failures(client, await ended(client, batch))
    assert found == [(None, "invalid_line", "the line is longer than 73728 bytes, as --max-body-bytes is 65536")]
    assert not parsing_threads
