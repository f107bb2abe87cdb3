"""Downloads of files: what a page reads, and what a client gets of a database that fails in the middle."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from databases import opened
from fake_engine import FakeEngine
from fake_server import features_with, live, make_service
from roost.server.database.database import Database, Transaction, upgrade
from roost.server.database.dialects import Sqlite
from roost.server.database.errors import StoreUnavailableError
from roost.server.features.batches import file_table
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.batch_table import TABLES
from roost.server.features.batches.file_table import FILES
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.text.served_model import ServedModel

FILE_ID = f"file-{'0' * 32}"
LINES = [b"%d" % number * 300_000 + b"\n" for number in range(9)]


def store(transaction: Transaction, lines: list[bytes]) -> None:
    file_table.begin(transaction, "", FILE_ID, "batch_output", "out.jsonl")
    file_table.add_lines(transaction, "", FILE_ID, 1, lines, sum(map(len, lines)))
    file_table.finish(transaction, "", FILE_ID)


def page(transaction: Transaction, **options: Any) -> list[bytes]:
    return [line for _, line in file_table.lines(transaction, "", FILE_ID, **options)]


@pytest.mark.parametrize(("max_bytes", "count"), [(2**20, 4), (300_002, 2), (300_001, 1), (1, 1), (0, 1)])
def test_a_page_ends_with_the_line_that_fills_it(address: str, max_bytes: int, count: int) -> None:
    database = opened(address)
    database.run_now(lambda each: store(each, LINES), writes=True)
    assert database.run_now(lambda each: page(each, after=0, max_bytes=max_bytes)) == LINES[:count]
    assert database.run_now(lambda each: page(each, after=8, max_bytes=max_bytes)) == LINES[8:]
    assert database.run_now(lambda each: page(each, after=9, max_bytes=max_bytes)) == []
    database.close()


def test_lines_behind_a_page_are_not_read(tmp_path: Path) -> None:
    """SQLite refuses here to read values as long as they are. PostgreSQL keeps such values apart anyway."""
    database = opened(f"sqlite://{tmp_path / 'store.db'}")
    lines = [bytes(2**20), bytes(2**21)]
    database.run_now(lambda each: store(each, lines), writes=True)

    def read(transaction: Transaction) -> None:
        connection: Any = transaction._connection
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2**20 + 1000)
        assert page(transaction, after=0) == lines[:1]
        with pytest.raises(sqlite3.DataError, match="too big"):
            page(transaction, after=1)

    database.run_now(read)
    database.close()


class Faulty(Sqlite):
    """A database that cannot read lines while `num_faults` is above 0. It can read the first ones."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.num_faults = 0
        self.num_reads = 0

    def connect(self) -> Any:
        connection: Any = super().connect()
        dialect = self

        class Checked:
            def execute(self, sql: str, values: Any = ()) -> Any:
                if "SELECT number, line" in sql:
                    dialect.num_reads += 1
                    if dialect.num_reads > 1 and dialect.num_faults > 0:
                        dialect.num_faults -= 1
                        raise sqlite3.OperationalError("disk I/O error")
                return connection.execute(sql, values)

            def interrupt(self) -> None:
                connection.interrupt()

            def close(self) -> None:
                connection.close()

        return Checked()


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    return Faulty(str(tmp_path / "store.db"))


@pytest.fixture
async def store_of_files(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BatchStore]:
    monkeypatch.setattr("roost.server.database.database._REPEAT_S", 0.0)
    database = Database(faulty)
    database.run_now(lambda each: upgrade(each, TABLES), writes=True)
    database.run_now(lambda each: store(each, LINES), writes=True)
    yield BatchStore(database, 1000.0)
    database.close()


@pytest.fixture
async def client(
    store_of_files: BatchStore, engine: FakeEngine, model: ServedModel
) -> AsyncIterator[httpx.AsyncClient]:
    service = make_service(engine, model)
    async with live(service, features=features_with(service, OpenBatches(service, store_of_files))) as client:
        yield client


async def test_a_download_outlasts_a_database_that_is_away(client: httpx.AsyncClient, faulty: Faulty) -> None:
    faulty.num_faults = 5
    response = await client.get(f"/v1/files/{FILE_ID}/content")
    assert response.content == b"".join(LINES)
    assert faulty.num_faults == 0


async def test_a_download_that_fails_breaks_the_connection(
    client: httpx.AsyncClient, faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.server.database.database._OUTAGE_S", 0.0)
    faulty.num_faults = 1
    with pytest.raises(httpx.RemoteProtocolError, match="closed connection without sending complete message body"):
        await client.get(f"/v1/files/{FILE_ID}/content")


async def test_a_download_of_a_deleted_file_breaks_the_connection(store_of_files: BatchStore) -> None:
    record = await store_of_files.files.get(FILE_ID)
    pieces = store_of_files.content(record)
    await anext(pieces)
    await store_of_files.files.write(FILES.hide, FILE_ID)
    await store_of_files.files.write(FILES.remove_object, FILE_ID)
    with pytest.raises(StoreUnavailableError, match="was deleted while it was sent"):
        await anext(pieces)
