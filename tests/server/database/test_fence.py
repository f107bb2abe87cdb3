"""Servers that run while a newer one upgrades their tables: which go on, and how the others stop."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from databases import PostgresqlServer, drop_tables, opened
from fake_server import until
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, Lane, Transaction, dialect_of, open_database
from roost.server.database.errors import StoreOutdatedError, StoreUnusableError
from roost.server.database.group_commit import GroupCommit
from roost.server.database.postgresql import Postgresql
from roost.server.database.schema import Tables, Upgrade

FIRST = Upgrade(["CREATE TABLE roost_toys (id TEXT NOT NULL)"], oldest=1)
EXPANSION = Upgrade(["ALTER TABLE roost_toys ADD COLUMN colour TEXT"], oldest=1)
CONTRACTION = Upgrade(["UPDATE roost_toys SET colour = 'red' WHERE colour IS NULL"], oldest=2)

OURS, EXPANDED, CONTRACTED = (
    Tables("toys", (FIRST,)),
    Tables("toys", (FIRST, EXPANSION)),
    Tables("toys", (FIRST, EXPANSION, CONTRACTION)),
)


@pytest.fixture
async def database(address: str) -> AsyncIterator[Database]:
    """The database of a server that knows the first version of its tables."""
    drop_tables(address)
    database = open_database(StoreAddress.parse(address), OURS)
    yield database
    database.close()
    drop_tables(address)


def upgrade(address: str, tables: Tables) -> None:
    """Starts a server of another version, and ends it."""
    open_database(StoreAddress.parse(address), tables).close()


def add(transaction: Transaction) -> None:
    transaction.execute("INSERT INTO roost_toys (id) VALUES ('bear')")


def toys(transaction: Transaction) -> list[Any]:
    return transaction.rows("SELECT id FROM roost_toys")


async def test_a_server_goes_on_beside_one_that_has_expanded_its_tables(address: str, database: Database) -> None:
    await database.run(add, lane=Lane.COMMITS)
    upgrade(address, EXPANDED)
    await database.run(add, lane=Lane.COMMITS)
    assert len(await database.run(toys)) == 2
    assert database.is_available
    upgrade(address, OURS)  # and starts again, as after a rollback


async def test_a_server_stops_once_its_tables_were_contracted(
    address: str, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    upgrade(address, CONTRACTED)
    for _ in range(2):
        for lane in Lane:
            with pytest.raises(StoreOutdatedError, match="have version 3, for servers that know 2 or more, and this"):
                await database.run(add, lane=lane)
    assert not database.is_available
    assert [(record.levelname, record.message) for record in caplog.records] == [
        (
            "ERROR",
            "the store's tables of toys have version 3, for servers that know 2 or more, and this server knows 1: "
            "use the newer server, or restore a backup from before its upgrade; this server accepts no more work that "
            "needs them, and is not ready",
        )
    ]
    other = opened(address)
    assert other.run_now(toys) == []
    other.close()


async def test_a_server_between_expansion_and_contraction_goes_on(address: str, database: Database) -> None:
    between = open_database(StoreAddress.parse(address), EXPANDED)
    upgrade(address, CONTRACTED)
    await between.run(add, lane=Lane.COMMITS)
    between.close()


async def test_a_server_that_is_too_old_does_not_start(address: str, database: Database) -> None:
    upgrade(address, CONTRACTED)
    with pytest.raises(
        StoreOutdatedError, match=r"^--store .*: the store's tables of toys have version 3, .* knows 1: "
    ):
        open_database(StoreAddress.parse(address), OURS)


async def test_writes_that_wait_are_refused_at_once(address: str, database: Database) -> None:
    """They would be repeated for all the time that they have, and in vain."""
    commits = GroupCommit(database)
    upgrade(address, CONTRACTED)
    async with asyncio.timeout(60):
        results = await asyncio.gather(*(commits.write(add, 1e6) for _ in range(300)), return_exceptions=True)
    assert {type(each) for each in results} == {StoreOutdatedError}


async def test_tables_that_were_restored_from_an_older_backup_need_a_start(address: str) -> None:
    drop_tables(address)
    newer = open_database(StoreAddress.parse(address), EXPANDED)
    await newer.run(add, lane=Lane.COMMITS)
    drop_tables(address)
    upgrade(address, OURS)  # a backup of this version
    with pytest.raises(
        StoreUnusableError, match="of toys have gone back to version 1, and this server needs 2: restart"
    ):
        await newer.run(add, lane=Lane.COMMITS)
    upgrade(address, EXPANDED)
    await newer.run(add, lane=Lane.COMMITS)
    newer.close()
    drop_tables(address)


async def test_an_upgrade_waits_for_transactions_that_have_passed_the_fence(postgresql: PostgresqlServer) -> None:
    """In SQLite, a file has one writer at a time."""
    address = postgresql.url
    drop_tables(address)
    database, observer = open_database(StoreAddress.parse(address), OURS), opened(address)
    has_begun, may_end = Event(), Event()

    def add_slowly(transaction: Transaction) -> None:
        has_begun.set()
        assert may_end.wait(120)
        add(transaction)

    def waits() -> bool:
        query = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'roost_schemas'::regclass"
        return bool(observer.run_now(lambda each: each.rows(query)))

    with ThreadPoolExecutor(1) as threads:
        adding = asyncio.create_task(database.run(add_slowly, lane=Lane.COMMITS, timeout_s=120))
        await until(has_begun.is_set)
        upgrading = threads.submit(upgrade, address, CONTRACTED)
        await until(waits)
        may_end.set()
        await adding
        upgrading.result(60)
    assert observer.run_now(lambda each: each.rows("SELECT colour FROM roost_toys")) == [("red",)]
    with pytest.raises(StoreOutdatedError):
        await database.run(add, lane=Lane.COMMITS)
    for each in (database, observer):
        each.close()
    drop_tables(address)


class Counting(Postgresql):
    """Counts messages to the server, each of which is a round trip."""

    messages: list[str]

    def connect(self) -> Any:
        connection, messages = super().connect(), self.messages

        class Counted:
            def execute(self, sql: Any, values: Any = (), /) -> Any:
                messages.append(sql)
                return connection.execute(sql, values)

            def close(self) -> None:
                connection.close()

        return Counted()


async def test_the_fence_takes_no_round_trip(postgresql: PostgresqlServer) -> None:
    drop_tables(postgresql.url)
    dialect = Counting(postgresql.url)
    dialect.messages = []
    database = Database(dialect, OURS)
    database.prepare_now()
    dialect.messages.clear()
    await database.run(add, lane=Lane.COMMITS)
    begin, _, commit = dialect.messages
    assert begin.startswith("BEGIN; ")
    assert begin.endswith("; SELECT version, oldest FROM roost_schemas WHERE feature = 'toys'")
    assert commit == "COMMIT"
    database.close()
    drop_tables(postgresql.url)


# --- rules for upgrades


def test_both_dialects_run_statements_in_order(address: str) -> None:
    dialect = dialect_of(StoreAddress.parse(address))
    connection = dialect.connect()
    statements: Sequence[str] = ("BEGIN", "SELECT 1", "SELECT 2")
    assert dialect.run_all(connection, statements).fetchall() == [(2,)]
    connection.close()
