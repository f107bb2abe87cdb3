"""Upgrades of the tables, under replicas that know the older ones."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from databases import opened
from roost.server.store import Database, ResponseRecord, StoreAddress, StoreUnavailableError, response_table, schema
from roost.server.store.dialects import dialect_of
from roost.server.store.schema import UPGRADES, Upgrade


def upgrade(address: str, database: Database, *further: Upgrade) -> None:
    dialect = dialect_of(StoreAddress.parse(address))
    database.run_now(lambda each: schema.upgrade(each, dialect, [*UPGRADES, *further]), writes=True)


def drop(database: Database) -> None:
    for name in ("schema", "responses", "events", "files", "file_lines", "batches", "batch_claims"):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE roost_{name}"), writes=True)


def test_old_and_new_replicas_share_an_upgraded_database(address: str) -> None:
    database = opened(address)
    added = Upgrade(["ALTER TABLE roost_responses ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'"], oldest=1)
    upgrade(address, database, added)
    upgrade(address, database, added)
    upgrade(address, database)  # an old replica starts
    record = ResponseRecord("", "r1", b"{}", b"[]", b"[]")
    database.run_now(lambda each: response_table.put(each, record), writes=True)
    assert database.run_now(lambda each: response_table.find(each, "", "r1")) == record
    assert database.run_now(lambda each: each.rows("SELECT colour FROM roost_responses")) == [("red",)]
    assert database.run_now(lambda each: each.rows("SELECT version, oldest FROM roost_schema")) == [
        (len(UPGRADES) + 1, 1)
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
    assert database.run_now(lambda each: each.rows("SELECT version, oldest FROM roost_schema")) == [(len(UPGRADES), 1)]
    database.close()
