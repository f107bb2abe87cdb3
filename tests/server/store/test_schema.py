"""Upgrades of the tables, under replicas that know the older ones."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from databases import opened
from roost.server.store import (
    Database,
    ResponseRecord,
    StoreAddress,
    StoreUnavailableError,
    file_table,
    response_table,
    schema,
)
from roost.server.store.dialects import dialect_of
from roost.server.store.schema import UPGRADES, Upgrade


def upgrade(address: str, database: Database, *further: Upgrade) -> None:
    dialect = dialect_of(StoreAddress.parse(address))
    database.run_now(lambda each: schema.upgrade(each, dialect, [*UPGRADES, *further]), writes=True)


def drop(database: Database) -> None:
    for name in ("schema", "responses", "events", "files", "file_lines", "file_order", "batches", "batch_claims"):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE roost_{name}"), writes=True)


def test_old_and_new_replicas_share_an_upgraded_database(address: str) -> None:
    database = opened(address)
    oldest = UPGRADES[-1].oldest
    added = Upgrade(["ALTER TABLE roost_responses ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'"], oldest)
    upgrade(address, database, added)
    upgrade(address, database, added)
    upgrade(address, database)  # an old replica starts
    record = ResponseRecord("", "r1", b"{}", b"[]", b"[]")
    database.run_now(lambda each: response_table.put(each, record), writes=True)
    assert database.run_now(lambda each: response_table.find(each, "", "r1")) == record
    assert database.run_now(lambda each: each.rows("SELECT colour FROM roost_responses")) == [("red",)]
    assert database.run_now(lambda each: each.rows("SELECT version, oldest FROM roost_schema")) == [
        (len(UPGRADES) + 1, UPGRADES[-1].oldest)
    ]
    drop(database)
    database.close()


def test_a_replica_that_is_too_old_refuses_to_start(address: str) -> None:
    database = opened(address)
    upgrade(
        address, database, Upgrade(["ALTER TABLE roost_responses ADD COLUMN colour TEXT"], oldest=len(UPGRADES) + 1)
    )
    message = f"version {len(UPGRADES) + 1}, and this server knows up to {len(UPGRADES)}"
    with pytest.raises(StoreUnavailableError, match=message):
        upgrade(address, database)
    drop(database)
    database.close()


def test_replicas_that_start_together_upgrade_once(address: str) -> None:
    database = opened(address)
    drop(database)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: upgrade(address, database), range(4)))
    expected = len(UPGRADES), UPGRADES[-1].oldest
    assert database.run_now(lambda each: each.rows("SELECT version, oldest FROM roost_schema")) == [expected]
    database.close()


def test_an_upgrade_counts_the_output_of_batches(address: str) -> None:
    """Older code has not counted the bytes of lines that have ended."""
    database, dialect = opened(address), dialect_of(StoreAddress.parse(address))
    drop(database)
    database.run_now(lambda each: schema.upgrade(each, dialect, UPGRADES[:3]), writes=True)
    batch = ("", "b", "in_progress", "m", "/v1/x", "in", "out", "err", "24h", b"{}", 0, 0, 3, 1, 1, 3, 0)
    database.run_now(
        lambda each: each.execute(
            """
            INSERT INTO roost_batches (tenant, id, status, model, url, input_file, output_file, error_file, time_window,
                metadata, created, expires, num_lines, num_completed, num_failed, next_line, claimed)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            """,
            *batch,
        ),
        writes=True,
    )
    database.run_now(lambda each: file_table.put_lines(each, "", [("out", 1, b"12345\n")]), writes=True)
    database.run_now(lambda each: file_table.put_lines(each, "", [("err", 2, b"12\n")]), writes=True)
    upgrade(address, database)
    sizes = database.run_now(lambda each: each.rows("SELECT output_bytes, error_bytes FROM roost_batches"))
    assert sizes == [(6, 3)]
    drop(database)
    database.close()
