"""Transactions of a database that fails: which errors pass, and what is left once it is well again."""

import logging
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
from databases import FAULTS, FaultyDatabase, PostgresqlServer, faulty_database, opened
from roost.server.database.database import Database, Transaction
from roost.server.database.errors import StoreUnavailableError
from roost.server.features.responses import response_table
from roost.server.features.responses.event_log import LogEntry
from roost.server.features.responses.response_table import Append, Job, ResponseRecord
from roost.server.storage.claims import Claimant, Places
from roost.server.storage.work import Lease

RECORD = ResponseRecord("", "r1", b"{}", b"[]", b"[]", is_running=True)


@pytest.fixture
def faulty(postgresql: PostgresqlServer) -> Iterator[FaultyDatabase]:
    with faulty_database(postgresql) as faulty:
        yield faulty


@pytest.fixture
def database(faulty: FaultyDatabase) -> Iterator[Database]:
    database = opened(faulty.url)
    yield database
    database.close()


def write(transaction: Transaction) -> None:
    lease = response_table.insert(transaction, Job(RECORD, "model"), "me")
    assert isinstance(lease, Lease)
    assert response_table.append_all(transaction, [Append(lease, LogEntry(0, 0, 1, 0, 1), 0)]) == {lease}


def read(transaction: Transaction) -> list[object]:
    return [*transaction.rows("SELECT 1")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_is_unavailability(database: Database, faulty: FaultyDatabase, fault: str) -> None:
    """Also on a connection of before it. It passes once the fault is mended."""
    database.run_now(read)
    faulty.administer(FAULTS[fault][0])
    if fault == "read-only":
        faulty.make(fault)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="the store's database cannot be used"):
            database.run_now(write, writes=True)
    faulty.mend(fault)
    database.run_now(write, writes=True)


def test_one_error_ends_all_connections_of_before(database: Database, faulty: FaultyDatabase) -> None:
    """A session that began while the database was read-only stays so for ever."""
    faulty.make("read-only")
    database.run_now(read)
    database.run_now(read, writes=True)
    faulty.mend("read-only")

    def write_beside_a_reader(_: Transaction) -> None:
        with pytest.raises(StoreUnavailableError):
            database.run_now(write, writes=True)

    database.run_now(write_beside_a_reader)
    assert not any(database._pool._idle.values()), "neither the reader's"
    database.run_now(write, writes=True)


def test_a_database_that_can_only_be_read_is_logged_once(
    database: Database, faulty: FaultyDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    faulty.make("read-only")
    for _ in range(3):
        database.run_now(read, writes=True)  # as a commit whose writes were all given up
        with pytest.raises(StoreUnavailableError):
            database.run_now(write, writes=True)
        database.run_now(read)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot execute INSERT in a read-only transaction" in caplog.text
    faulty.mend("read-only")
    database.run_now(write, writes=True)
    assert [record.message for record in caplog.records][1:] == ["the store's database can be used again"]


def test_a_response_whose_log_cannot_be_written_is_not_adopted(database: Database, faulty: FaultyDatabase) -> None:
    """It would be an adoption in vain."""
    database.run_now(write, writes=True)
    database.run_now(lambda each: each.execute("UPDATE roost_running SET owner = NULL, lease_until = 0"), writes=True)
    claim = partial(response_table.claim, claimant=Claimant("me", "model"), places=Places(1, 1))
    faulty.make("no privilege for the log")
    for _ in range(3):
        with pytest.raises(StoreUnavailableError, match="permission denied"):
            database.run_now(claim, writes=True)
    faulty.mend("no privilege for the log")
    (adoption,) = database.run_now(claim, writes=True)
    assert adoption.claim.lease.fence == 2


def test_a_file_that_is_no_database_is_unavailability(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    database = opened(f"sqlite://{path}")
    database.run_now(read)
    database._pool.fail()
    whole = path.read_bytes()
    path.write_bytes(b"something else" * 1000)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="not a database"):
            database.run_now(write, writes=True)
    path.write_bytes(whole)
    database.run_now(write, writes=True)
    database.close()


def test_a_table_that_is_missing_from_a_file_is_unavailability(tmp_path: Path) -> None:
    database = opened(f"sqlite://{tmp_path / 'store.db'}")
    database.run_now(lambda each: each.execute("ALTER TABLE roost_events RENAME TO lost"), writes=True)
    with pytest.raises(StoreUnavailableError, match="no such table"):
        database.run_now(write, writes=True)
    database.run_now(lambda each: each.execute("ALTER TABLE lost RENAME TO roost_events"), writes=True)
    database.run_now(write, writes=True)
    database.close()


@pytest.mark.parametrize(
    "sql",
    ["SELECT ?", "INSERT INTO roost_schemas VALUES ('toys', NULL, 1)"],
    ids=["too few values", "a value that is not allowed"],
)
def test_a_bug_is_not_unavailability(address: str, sql: str, caplog: pytest.LogCaptureFixture) -> None:
    """It would be repeated in vain, and hidden."""
    database = opened(address)
    with pytest.raises((sqlite3.ProgrammingError, sqlite3.IntegrityError, psycopg.ProgrammingError, psycopg.Error)):
        database.run_now(lambda each: each.execute(sql), writes=True)
    assert not caplog.records
    assert database.run_now(read) == [(1,)]
    database.close()
