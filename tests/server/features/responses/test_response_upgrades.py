"""Responses in a database of an older version, and older replicas that share a newer one."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from databases import opened, table_names
from roost.server.database import schema
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, Transaction
from roost.server.database.dialects import dialect_of
from roost.server.features.responses import claim_table, expiry_table, response_table
from roost.server.features.responses.records import Claim, Deaths, LogEntry
from roost.server.features.responses.tables import TABLES

OLDER = replace(TABLES, upgrades=TABLES.upgrades[:2])
"""Tables whose responses have no counts of deaths and bytes."""


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    """A database with the older tables of responses alone."""
    database = opened(address)
    drop_all(database, address)
    upgrade(database, address, OLDER)
    yield database
    drop_all(database, address)
    database.close()


def drop_all(database: Database, address: str) -> None:
    for name in database.run_now(lambda each: table_names(each, address)):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE {name}"), writes=True)


def upgrade(database: Database, address: str, tables: schema.Tables) -> None:
    dialect = dialect_of(StoreAddress.parse(address))
    database.run_now(lambda each: schema.upgrade(each, dialect, tables), writes=True)


def insert_as_older(transaction: Transaction, name: str, *, is_running: bool) -> None:
    """Stores a response as an older replica does, with a token and its event."""
    transaction.execute(
        """
        INSERT INTO roost_responses (tenant, id, response, history, output, is_background, is_streamed, is_running,
            num_bytes, created, model, request, prompt, owner, engine, exact_fence, fence, lease_until, num_stalls)
        VALUES ('', ?, ?, ?, ?, 1, 1, ?, 20, {now}, 'model', ?, ?, 'older', 'x86', 1, 1, {now} - 1, 0)
        """,
        name,
        b"pending",
        b"[]",
        b"[]",
        int(is_running),
        b"{}",
        b"\1\0\0\0",
    )
    transaction.execute("INSERT INTO roost_events VALUES ('', ?, 0, 0, 1, 0, 1, ?, ?)", name, b"delta", b"event")


def claimed(database: Database) -> list[Claim]:
    return database.run_now(lambda each: claim_table.claim(each, "newer", "model", 8, "x86"), writes=True)


def test_what_runs_in_an_older_database_goes_on(address: str, database: Database) -> None:
    for name, is_running in (("ended", False), ("running", True)):
        database.run_now(lambda each, n=name, r=is_running: insert_as_older(each, n, is_running=r), writes=True)
    upgrade(database, address, TABLES)
    (claim,) = claimed(database)
    assert (claim.lease.id, claim.deaths, claim.is_exact) == ("running", Deaths(1, 0), True)
    assert claim.log.num_bytes == len(b"delta" + b"event")
    entry, size = LogEntry(1, 1, 1, 1, 0, b"", b"end"), 13
    end = response_table.end
    database.run_now(lambda each: end(each, claim.lease, entry, b"done", b"[1]", size), writes=True)
    sizes = "SELECT id, num_bytes FROM roost_responses ORDER BY id"
    assert database.run_now(lambda each: each.rows(sizes)) == [("ended", 20), ("running", len(b"done[1][]") + size)]
    assert database.run_now(lambda each: expiry_table.expired(each, 1e9, expiry_table.RowLimits(1, 10**9))) == [
        ("", "ended")
    ]


def test_older_replicas_share_an_upgraded_database(address: str, database: Database) -> None:
    upgrade(database, address, TABLES)
    upgrade(database, address, OLDER)  # an older replica starts
    database.run_now(lambda each: insert_as_older(each, "r", is_running=True), writes=True)
    (claim,) = claimed(database)
    database.run_now(lambda each: response_table.release(each, [claim.lease]), writes=True)
    adopt_as_older = "UPDATE roost_responses SET owner = 'older', fence = 3, lease_until = {now} - 1, num_stalls = 5"
    database.run_now(lambda each: each.execute(adopt_as_older), writes=True)
    (claim,) = claimed(database)
    assert (claim.lease.fence, claim.deaths) == (4, Deaths(2, 0))
    stalls = "SELECT num_stalls FROM roost_responses"
    assert database.run_now(lambda each: each.rows(stalls)) == [(0,)], "older replicas fail those with many"
