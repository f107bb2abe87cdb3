"""Background responses on a database that has room for some of what they store first."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, features_with, make_service, until
from roost.server.app import create_app
from roost.server.database.database import Database
from roost.server.features.responses.open_responses import OpenResponses
from roost.server.features.responses.response_store import ResponseStore
from roost.server.http.auth import Access
from roost.server.text.served_model import ServedModel
from small_disk import SmallDisk

BODY = {"input": "hi", "instructions": "x" * 100_000, "max_output_tokens": 2, "background": True}


@pytest.fixture
def disk(tmp_path: Path) -> SmallDisk:
    path = tmp_path / "store.db"
    opened(f"sqlite://{path}").close()
    return SmallDisk(str(path))


@pytest.fixture
async def feature(disk: SmallDisk, model: ServedModel) -> AsyncIterator[OpenResponses]:
    store = ResponseStore(Database(disk), 1000.0)
    yield OpenResponses(make_service(FakeEngine(VOCAB_SIZE), model), store)
    await store.close()


def count(disk: SmallDisk, sql: str) -> int:
    database = Database(disk)
    ((found,),) = database.run_now(lambda each: each.rows(sql))
    database.close()
    return int(found)


def num_used(disk: SmallDisk) -> int:
    """Returns the number of pages of the file, from which it removes those without content."""
    with closing(disk.connect()) as connection:
        connection.execute("VACUUM")
        ((found,),) = connection.execute("PRAGMA page_count").fetchall()
    return int(found)


async def test_a_stream_without_room_for_its_first_events_is_refused(disk: SmallDisk, feature: OpenResponses) -> None:
    """It is refused at once, and leaves nothing behind."""
    app = create_app(feature.service, Access(), features_with(feature.service, feature))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://roost", timeout=30) as client:
        assert isinstance(feature.service.engine, FakeEngine)
        feature.service.engine.gate.clear()
        before = num_used(disk)
        stored = await client.post("/v1/responses", json=BODY)
        assert stored.status_code == 200, stored.text
        num_pages = num_used(disk) - before
        feature.service.engine.gate.set()
        await until(lambda: not feature.is_busy)
        disk.max_pages = num_used(disk) + num_pages  # for another one without events
        refused = await client.post("/v1/responses", json={**BODY, "stream": True})
    assert (refused.status_code, refused.json()["error"]["message"]) == (507, "the store of responses is full")
    assert count(disk, "SELECT count(*) FROM roost_responses") == 1
