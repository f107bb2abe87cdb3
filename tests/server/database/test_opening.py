"""Opening a database: who may read SQLite's files, and how many connections a server has."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import PostgresqlServer, opened
from roost.server.app import open_features
from roost.server.database.address import StoreAddress
from roost.server.database.database import Lane, Transaction, open_database
from roost.server.database.dialects import Connection
from roost.server.database.schema import Tables, Upgrade
from roost.server.feature import Opening
from roost.server.generation.service import Service
from roost.server.settings import load_settings

TABLES = Tables("notes", (Upgrade(("CREATE TABLE roost_notes (text TEXT NOT NULL)",), oldest=1),))


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_a_new_file_is_its_owners_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = open_database(StoreAddress("sqlite", str(tmp_path / "store.db")), TABLES)
    assert modes(tmp_path) == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert not caplog.records
    database.close()


def test_a_file_that_others_may_read_is_left_alone_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    path.touch(0o644)
    for _ in range(2):  # as features do
        open_database(StoreAddress("sqlite", str(path)), TABLES).close()
    assert modes(tmp_path) == {"store.db": 0o644}
    (record,) = caplog.records
    assert f"other users of the machine may use {path} (mode 644): chmod 600 it" in record.message


async def test_transactions_in_memory_follow_each_other_on_one_connection() -> None:
    """One that fails leaves nothing behind but its database."""
    database = open_database(StoreAddress("memory"), TABLES)
    connections = set[Connection | None]()

    def add(transaction: Transaction) -> None:
        connections.add(transaction._connection)
        transaction.execute("INSERT INTO roost_notes VALUES ('kept')")

    def fail(transaction: Transaction) -> None:
        add(transaction)
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await database.run(fail, lane=Lane.UPLOADS)
    await asyncio.gather(*(database.run(add, lane=lane) for lane in (Lane.COMMITS, Lane.LEASES)))
    assert await database.run(lambda each: each.rows("SELECT text FROM roost_notes")) == [("kept",)] * 2
    assert len(connections) == 1
    database.close()


async def test_the_features_of_a_server_share_six_connections(service: Service, postgresql: PostgresqlServer) -> None:
    opened(postgresql.url).close()
    features = open_features(Opening(service, load_settings({"store": postgresql.url})))
    databases = [each.database for each in features if each.database is not None]
    assert len(databases) == 3
    may_end, running = threading.Event(), list[Transaction]()

    def occupy(transaction: Transaction) -> None:
        transaction.rows("SELECT 1")
        running.append(transaction)
        assert may_end.wait(60)

    def connected(transaction: Transaction) -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'roost' AND pid <> pg_backend_pid()"
        return int(transaction.rows(query)[0][0])

    tasks = [asyncio.create_task(each.run(occupy, lane=lane)) for each in databases for lane in Lane for _ in range(2)]
    async with asyncio.timeout(60):
        while len(running) < 5:  # two read, since no tenant has all readers
            await asyncio.sleep(0.01)
    observer = opened(postgresql.url)
    assert observer.run_now(connected, writes=True) == 5
    may_end.set()
    await asyncio.gather(*tasks)
    assert observer.run_now(connected, writes=True) <= 6
    observer.close()
    await asyncio.gather(*(each.close() for each in features))
