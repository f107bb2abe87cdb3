"""The stored responses of a running server: how they are opened, what they hold, and how they end."""

import asyncio
import json
import re
import signal
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from fake_process import Process
from fake_server import features_with, limited, until
from roost.server.app import create_app
from roost.server.database.errors import StoreUnavailableError
from roost.server.feature import Opening
from roost.server.features.responses.open_responses import open_responses
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys
from roost.server.settings import load_settings


def test_a_store_that_cannot_be_opened_is_named(service: Service, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/missing/responses.db"
    with pytest.raises(StoreUnavailableError, match=rf"\A--store sqlite://{re.escape(str(tmp_path))}/missing/.*: "):
        open_responses(Opening(service, load_settings({"store": store})))


async def test_what_a_response_shows_of_its_request_counts(service: Service) -> None:
    """Ten with tools of 300 kB each, which are no message."""
    parameters = {"type": "object", "properties": {f"a{i}": {"type": "string"} for i in range(10_000)}}
    tools = [{"type": "function", "name": "f", "parameters": parameters}]
    feature = open_responses(Opening(service))
    app = create_app(service, features=features_with(service, feature))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        for _ in range(10):
            body = {"input": "a", "max_output_tokens": 3, "tools": tools, "tool_choice": "none"}
            assert (await client.post("/v1/responses", json=body)).status_code == 200
    size = len(json.dumps(tools, separators=(",", ":")))
    num_bytes = await feature.store.database.run(
        lambda each: each.rows("SELECT sum(num_bytes) FROM roost_responses")[0][0]
    )
    assert 10 * size < num_bytes < 11 * size


async def test_background_work_holds_its_memory_until_it_ends(service: Service, engine: FakeEngine) -> None:
    engine.gate.clear()
    headers = {"content-type": "application/json", "x-api-key": "g"}
    body = json.dumps({"input": "a" * 900, "background": True}, separators=(",", ":")).encode()
    service = limited(service, 1000, tenants=2)
    feature = open_responses(Opening(service))
    keys = Access(keys=ApiKeys(["greedy:g", "modest:m"]))
    app = create_app(service, keys, features_with(service, feature))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        created = []
        while (response := await client.post("/v1/responses", content=body, headers=headers)).status_code == 200:
            created.append(response.json()["id"])
        assert response.status_code == 429
        assert len(created) < 20
        engine.gate.set()
        await until(lambda: not feature.is_busy)
        assert (await client.post("/v1/responses", content=body, headers=headers)).status_code == 200
        await until(lambda: not feature.is_busy)


async def test_shutdown_drains_a_background_response(engine: FakeEngine, service: Service) -> None:
    feature = open_responses(Opening(service))
    process = Process(service, features=features_with(service, feature))
    async with process.client() as client:
        engine.gate.clear()
        await client.post("/v1/responses", json={"input": "a", "background": True})
        process.signals.first = signal.SIGTERM
        await until(lambda: not service.open_requests.is_accepting)
        await asyncio.sleep(0.1)
        assert not engine.stopped
        engine.gate.set()
        assert await process.end() is None
    assert feature.store.stats.ended == {"completed": 1}
