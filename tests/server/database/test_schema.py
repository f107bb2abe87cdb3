"""Upgrades of tables, under replicas that know the older ones."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from databases import opened, table_names
from roost.server.database import schema
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, Transaction
from roost.server.database.dialects import dialect_of
from roost.server.database.errors import StoreUnavailableError
from roost.server.database.schema import Tables, Upgrade

FIRST = Upgrade(["CREATE TABLE roost_toys (id TEXT NOT NULL)"], oldest=1)
SECOND = Upgrade(["ALTER TABLE roost_toys ADD COLUMN colour TEXT NOT NULL DEFAULT 'red'"], oldest=1)
HARMFUL = Upgrade(["ALTER TABLE roost_toys ADD COLUMN size BIGINT"], oldest=3)


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    """A database with the tables of all features."""
    database = opened(address)
    yield database
    for name in database.run_now(lambda each: table_names(each, address)):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE {name}"), writes=True)
    database.close()


def upgrade(address: str, database: Database, *upgrades: Upgrade, common_versions: tuple[int, ...] = ()) -> None:
    dialect, tables = dialect_of(StoreAddress.parse(address)), Tables("toys", upgrades, common_versions)
    database.run_now(lambda each: schema.upgrade(each, dialect, tables), writes=True)


def versions(database: Database) -> list[tuple[int, int]]:
    query = "SELECT version, oldest FROM roost_schemas WHERE feature = 'toys'"
    return database.run_now(lambda each: [(int(version), int(oldest)) for version, oldest in each.rows(query)])


def test_old_and_new_replicas_share_an_upgraded_database(address: str, database: Database) -> None:
    upgrade(address, database, FIRST)
    upgrade(address, database, FIRST, SECOND)
    upgrade(address, database, FIRST, SECOND)
    upgrade(address, database, FIRST)  # an old replica starts
    database.run_now(lambda each: each.execute("INSERT INTO roost_toys (id) VALUES ('bear')"), writes=True)
    assert database.run_now(lambda each: each.rows("SELECT * FROM roost_toys")) == [("bear", "red")]
    assert versions(database) == [(2, 1)]


def test_a_replica_that_is_too_old_refuses_to_start(address: str, database: Database) -> None:
    upgrade(address, database, FIRST, SECOND, HARMFUL)
    with pytest.raises(
        StoreUnavailableError,
        match="tables of toys have version 3, for servers that know 3 or more, and this server knows 2",
    ):
        upgrade(address, database, FIRST, SECOND)


def test_replicas_that_start_together_upgrade_once(address: str, database: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: upgrade(address, database, FIRST, SECOND), range(4)))
    assert versions(database) == [(2, 1)]


@pytest.mark.parametrize(("common", "columns"), [(0, 2), (1, 2), (2, 2), (9, 2)])
def test_tables_of_a_common_version_are_upgraded_from_there(
    address: str, database: Database, common: int, columns: int
) -> None:
    """All tables had one version before each feature had its own."""
    done = (FIRST, SECOND)[: (0, 1, 2)[min(common, 2)]]
    for step in done:
        database.run_now(lambda each, step=step: each.execute(step.statements[0]), writes=True)
    database.run_now(lambda each: each.execute("DELETE FROM roost_schema"), writes=True)
    database.run_now(lambda each: each.execute("INSERT INTO roost_schema VALUES (?, 1)", common), writes=True)
    upgrade(address, database, FIRST, SECOND, common_versions=(0, 1, 2))
    database.run_now(lambda each: each.execute("INSERT INTO roost_toys (id) VALUES ('bear')"), writes=True)
    (row,) = database.run_now(lambda each: each.rows("SELECT * FROM roost_toys"))
    assert len(row) == columns
    assert versions(database) == [(2, 1)]


def test_current_tables_are_not_touched(address: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role without the right to make tables can use them."""
    upgrade(address, database, FIRST, SECOND)
    dialect, tables = dialect_of(StoreAddress.parse(address)), Tables("toys", (FIRST, SECOND))
    statements: list[str] = []

    def run(transaction: Transaction) -> None:
        execute = transaction.execute
        monkeypatch.setattr(
            transaction, "execute", lambda sql, *values: statements.append(sql) or execute(sql, *values)
        )
        schema.upgrade(transaction, dialect, tables)

    database.run_now(run, writes=True)
    assert not [each for each in statements if each.split()[0] in ("CREATE", "ALTER", "DELETE", "INSERT")]
