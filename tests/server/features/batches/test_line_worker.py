"""When a replica gives lines back, and which lines it leaves to other tenants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from batch_workers import lines_of, working
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, make_service, until
from roost.engine import EngineDeadError
from roost.server.app import create_app
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.http.auth import Access, ApiKeys
from roost.server.text.served_model import ServedModel


@pytest.fixture
async def batches(engine: FakeEngine, model: ServedModel, tmp_path: Path) -> AsyncIterator[OpenBatches]:
    store = BatchStore(opened(f"sqlite://{tmp_path / 'store.db'}"), 86400.0)
    yield OpenBatches(make_service(engine, model), store)
    store.close()


async def started(client: httpx.AsyncClient, num_lines: int) -> str:
    lines = [
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": {"prompt": [5], "max_tokens": 2}}
        for number in range(num_lines)
    ]
    content = b"\n".join(map(orjson.dumps, lines))
    file = (await client.post("/v1/files", data={"purpose": "batch"}, files={"file": content})).json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    return (await client.post("/v1/batches", json=body)).json()["id"]


async def ended(client: httpx.AsyncClient, batch_id: str) -> Any:
    async with asyncio.timeout(60):
        while (batch := (await client.get(f"/v1/batches/{batch_id}")).json())["status"] == "in_progress":
            await asyncio.sleep(0.02)
    return batch["request_counts"]


def rows(store: BatchStore, statement: str) -> list[tuple[Any, ...]]:
    return store._database.run_now(lambda each: each.rows(statement), writes=True)


async def test_lines_are_given_back_for_work_that_tolerates_none_beside_it(
    client: httpx.AsyncClient, batches: OpenBatches, store: BatchStore, engine: FakeEngine
) -> None:
    """Such as a response of the store that has lost two owners."""
    batch = await started(client, 5)
    engine.gate.clear()
    async with working(batches), asyncio.timeout(60):
        await until(lambda: engine.running)
        async with batches.service.admissions.preemptible.barred():
            assert not engine.running
            store.has_work.set()
            await until(lambda: not store.has_work.is_set())
            assert not engine.running
            assert rows(store, "SELECT 1 FROM roost_lines WHERE owner IS NOT NULL") == []
        engine.gate.set()
        assert await ended(client, batch) == {"total": 5, "completed": 5, "failed": 0}


async def test_an_engine_that_dies_counts_as_a_death(
    client: httpx.AsyncClient, batches: OpenBatches, store: BatchStore, engine: FakeEngine
) -> None:
    """Its lines are not given back, as one of them may have ended it."""
    await started(client, 4)
    engine.gate.clear()
    async with working(batches) as worker:
        await until(lambda: len(engine.running) == 4)
        engine.fail(EngineDeadError("the device was lost"))
        await until(lambda: not worker._open)
    deaths = "SELECT num_deaths, num_lone_deaths FROM roost_lines WHERE owner IS NULL"
    assert rows(store, deaths) == [(1, 0)] * 4
    assert store.leases.num_refusals == 0


async def test_a_busy_replica_gives_lines_back_for_later(
    client: httpx.AsyncClient, batches: OpenBatches, store: BatchStore, engine: FakeEngine
) -> None:
    batch = await started(client, 3)
    engine.capacity = 0
    async with working(batches):
        await until(lambda: store.leases.num_refusals >= 3)
        engine.capacity = 1000
        assert await ended(client, batch) == {"total": 3, "completed": 3, "failed": 0}


async def test_a_tenant_leaves_places_of_a_replica_to_others(batches: OpenBatches, engine: FakeEngine) -> None:
    """Another's first line waits for none to end."""
    access = Access(ApiKeys(["a:key-of-a", "b:key-of-b"]))
    app = create_app(batches.service, access, features_with(batches.service, batches))
    engine.gate.clear()
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app),
                    base_url="http://roost",
                    headers={"authorization": f"Bearer key-of-{name}"},
                )
            )
            for name in "ab"
        ]
        worker = await stack.enter_async_context(working(batches, tenants=2))
        first = await started(a, 20)
        await until(lambda: lines_of(worker).held["a"] == 7)
        second = await started(b, 20)
        await until(lambda: lines_of(worker).held["b"] > 0)
        assert lines_of(worker).held["a"] == 7
        engine.gate.set()
        assert (await ended(a, first))["completed"] == (await ended(b, second))["completed"] == 20
