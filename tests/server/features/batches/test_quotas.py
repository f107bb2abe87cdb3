"""Limits on what a tenant keeps and runs, over HTTP and on both databases."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from batch_workers import working
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, make_service, until
from roost.server.app import create_app
from roost.server.database.group_commit import WriteLoad
from roost.server.features.batches import file_table, line_worker
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.features.batches.settings import BatchesSettings
from roost.server.http.auth import Access, ApiKeys
from roost.server.settings import SettingsError, load_settings
from roost.server.tenants import tenant
from roost.server.text.served_model import ServedModel

MAX_BYTES = 60_000


@pytest.fixture
async def batches(engine: FakeEngine, model: ServedModel, address: str) -> AsyncIterator[OpenBatches]:
    store = BatchStore(opened(address), 86400.0, MAX_BYTES)
    yield OpenBatches(make_service(engine, model), store)
    store.close()


@pytest.fixture
async def client(batches: OpenBatches) -> AsyncIterator[httpx.AsyncClient]:
    access = Access(ApiKeys(["a:key-of-a", "b:key-of-b"]))
    transport = httpx.ASGITransport(create_app(batches.service, access, features_with(batches.service, batches)))
    headers = {"authorization": "Bearer key-of-a"}
    async with httpx.AsyncClient(transport=transport, base_url="http://roost", headers=headers) as client:
        yield client


def content(num_lines: int, size: int = 0) -> bytes:
    lines = [
        {
            "custom_id": f"{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": [5], "max_tokens": 2, "user": "u" * size},
        }
        for number in range(num_lines)
    ]
    return b"\n".join(map(orjson.dumps, lines))


async def upload(client: httpx.AsyncClient, content: bytes, **headers: str) -> httpx.Response:
    return await client.post("/v1/files", data={"purpose": "batch"}, files={"file": content}, headers=headers)


async def begin(client: httpx.AsyncClient, file_id: str) -> httpx.Response:
    body = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    return await client.post("/v1/batches", json=body)


def message(response: httpx.Response) -> str:
    """Returns the message of a response that refuses what exceeds a limit."""
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (403, "quota_exceeded"), error
    assert response.headers["x-should-retry"] == "false"
    return str(error["message"])


async def test_bytes_of_uploads_that_run_elsewhere_count(client: httpx.AsyncClient, store: BatchStore) -> None:
    """And what a refused upload had stored is deleted. Another tenant has its own limit."""
    other = BatchStore(store._database, 86400.0, MAX_BYTES)
    assert "and may take 60,000 (--store-gib, or a share of 256 MiB without --store): delete some files" in message(
        await upload(client, content(1, 70_000))
    )
    assert await store._database.run(lambda each: each.rows("SELECT * FROM roost_files")) == []
    assert (await upload(client, content(1, 25_000))).status_code == 200
    tenant.set("a")
    running = await other.begin_file("slow")
    await other.add_lines(running, 1, [b"x" * 20_000], 20_000)
    tenant.set("")
    assert "may take 60,000" in message(await upload(client, content(1, 25_000)))
    assert (await upload(client, content(1, 25_000), authorization="Bearer key-of-b")).status_code == 200


async def test_an_upload_that_announces_too_much_is_refused_before_it_is_stored(
    client: httpx.AsyncClient, store: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the beginning of its body is read."""
    whole = client.build_request("POST", "/v1/files", data={"purpose": "batch"}, files={"file": content(1, 200_000)})
    body = whole.read()

    async def beginning() -> AsyncIterator[bytes]:
        yield body[:1000]
        pytest.fail("the rest of the body was read")

    def begin_file(*_: object) -> None:
        pytest.fail("a file was begun")

    monkeypatch.setattr(file_table, "begin", begin_file)
    refused = await client.post("/v1/files", headers=dict(whole.headers), content=beginning())
    assert re.search(r"take 0 bytes, the file at least \d{3},\d{3} more, and may take 60,000", message(refused))
    too_long = {**whole.headers, "content-length": str(2**31 + 2**16 + 1)}
    assert (await client.post("/v1/files", headers=too_long, content=beginning())).status_code == 413


async def test_files_lines_and_batches_are_counted(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_table, "MAX_FILES", 5)
    monkeypatch.setattr(file_table, "MAX_LINES", 14)
    monkeypatch.setattr(file_table, "MAX_BATCHES", 2)
    first = (await upload(client, content(3))).json()["id"]
    assert (await begin(client, first)).status_code == 200
    assert "an API key may keep 5 files" in message(
        await begin(client, (await upload(client, content(1))).json()["id"])
    )
    assert (await upload(client, content(1))).status_code == 200
    assert "an API key may keep 5 files" in message(await upload(client, content(1)))
    monkeypatch.setattr(file_table, "MAX_FILES", 100)
    assert (await begin(client, first)).status_code == 200
    assert "an API key may have 2 batches in progress" in message(await begin(client, first))
    monkeypatch.setattr(file_table, "MAX_BATCHES", 3)
    assert "may have 14 lines together" in message(await upload(client, content(4)))
    assert "may have 14 lines together" in message(await begin(client, (await upload(client, content(2))).json()["id"]))


async def test_a_result_that_is_too_long_to_be_stored_is_an_error(
    client: httpx.AsyncClient, batches: OpenBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_worker, "MAX_WRITE", WriteLoad(1, 100))
    batch = (await begin(client, (await upload(client, content(1))).json()["id"])).json()
    async with working(batches), asyncio.timeout(60):
        while (ended := (await client.get(f"/v1/batches/{batch['id']}")).json())["status"] != "completed":
            await asyncio.sleep(0.005)
    assert ended["output_file_id"] is None
    line = (await client.get(f"/v1/files/{ended['error_file_id']}/content")).json()
    assert line["error"]["code"] == "result_too_large"
    assert "and at most 100 are stored" in line["error"]["message"]


async def test_a_batch_waits_for_room_for_its_output(
    client: httpx.AsyncClient, batches: OpenBatches, store: BatchStore, engine: FakeEngine
) -> None:
    """Its description names the limit, and it goes on when files are deleted."""
    extra = (await upload(client, content(1, 20_000))).json()["id"]
    batch = (await begin(client, (await upload(client, content(200))).json()["id"])).json()
    assert batch["errors"] is None

    async def described() -> Any:
        return (await client.get(f"/v1/batches/{batch['id']}")).json()

    async with working(batches, tenants=2), asyncio.timeout(60):
        while not (waiting := await described())["errors"]:
            assert waiting["status"] == "in_progress"
            await asyncio.sleep(0.02)
        (error,) = waiting["errors"]["data"]
        assert error["code"] == "quota_exceeded"
        assert (
            "and may take 60,000 (--store-gib, or a share of 256 MiB without --store): delete some files"
            in error["message"]
        )
        await until(lambda: not engine.running)
        counts = (await described())["request_counts"]
        assert 0 < counts["completed"] < 200
        for _ in range(2):  # claims that had begun before the limit was reached have ended then
            store.has_work.set()
            await until(lambda: not store.has_work.is_set())
        await until(lambda: not engine.running)
        num_requests = len(engine.requests)
        store.has_work.set()
        await until(lambda: not store.has_work.is_set())
        assert "may take 60,000" in message(await upload(client, content(1)))
        assert "may take 60,000" in message(await begin(client, extra))
        assert len(engine.requests) == num_requests
        store.lines.max_bytes = 10 * MAX_BYTES
        assert (await client.delete(f"/v1/files/{extra}")).status_code == 200
        while (ended := await described())["status"] == "in_progress":
            await asyncio.sleep(0.02)
    assert ended["request_counts"] == {"total": 200, "completed": 200, "failed": 0}
    assert ended["errors"] is None


def test_the_limit_of_bytes_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_STORE_GIB", "0.5")
    settings = load_settings({})
    assert isinstance(settings, BatchesSettings)
    assert settings.store_gib == 0.5
    with pytest.raises(SettingsError, match="--store-gib"):
        load_settings({"store_gib": "0"})
