"""The operator's own paths."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import jax
import jax.numpy as jnp
import pytest
from fake_engine import FakeEngine
from roost.engine import record_profile
from roost.server.app import create_app
from roost.server.features.native import feature
from roost.server.generation.service import Service
from roost.server.http.auth import Access, ApiKeys

ROOT, ALICE = {"authorization": "Bearer root"}, {"authorization": "Bearer a"}


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(service, Access(ApiKeys(["alice:a"]), ApiKeys(["root"])))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost") as client:
        yield client


async def test_a_profile_is_an_archive(client: httpx.AsyncClient) -> None:
    response = await client.post("/debug/profile", params={"seconds": 0.05}, headers=ROOT)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip"
    names = zipfile.ZipFile(io.BytesIO(response.content)).namelist()
    assert any(name.endswith(".xplane.pb") for name in names)


def test_a_profile_has_what_was_computed(tmp_path: Path) -> None:
    record_profile(tmp_path, 0.01)
    jax.block_until_ready(jnp.ones(3) + 1)
    assert list(tmp_path.rglob("*.xplane.pb"))


async def test_it_is_the_operators_alone(client: httpx.AsyncClient, service: Service) -> None:
    for headers in ({}, ALICE):
        assert (await client.post("/debug/profile", headers=headers)).status_code == 401
    assert (await client.get("/v1/models", headers=ROOT)).status_code == 401
    without = create_app(service, Access(ApiKeys(["alice:a"])))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(without), base_url="http://roost") as other:
        assert (await other.post("/debug/profile", headers=ROOT)).status_code == 404
        assert "/debug/profile" not in (await other.get("/openapi.json", headers=ALICE)).json()["paths"]


async def test_one_at_a_time(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature, "_record", lambda seconds: b"")
    async with feature._ONE:
        response = asyncio.create_task(client.post("/debug/profile", headers=ROOT))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not response.done()
    assert (await response).status_code == 200


@pytest.mark.parametrize("seconds", ["0", "-1", "61", "nan", "x"])
async def test_it_is_bounded(client: httpx.AsyncClient, seconds: str) -> None:
    response = await client.post("/debug/profile", params={"seconds": seconds}, headers=ROOT)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "seconds")


async def test_it_waits_for_the_model(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.ready.clear()
    assert (await client.post("/debug/profile", headers=ROOT)).status_code == 503
    await asyncio.sleep(0)
