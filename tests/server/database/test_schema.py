"""Upgrades of tables, under replicas that know the older ones."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from databases import drop_tables, opened, table_names
from roost.server.database.address import StoreAddress
from roost.server.database.database import Database, Transaction, dialect_of, open_database, upgrade
from roost.server.database.errors import StoreOutdatedError, StoreUnavailableError, StoreUnusableError
from roost.server.database.schema import Tables, Upgrade
from roost.server.feature import Feature, load_features

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


def upgrade_toys(database: Database, *upgrades: Upgrade) -> None:
    database.run_now(lambda each: upgrade(each, Tables("toys", upgrades)), writes=True)


def versions(database: Database) -> list[tuple[int, int]]:
    query = "SELECT version, oldest FROM roost_schemas WHERE feature = 'toys'"
    return database.run_now(lambda each: [(int(version), int(oldest)) for version, oldest in each.rows(query)])


def test_old_and_new_replicas_share_an_upgraded_database(database: Database) -> None:
    upgrade_toys(database, FIRST)
    upgrade_toys(database, FIRST, SECOND)
    upgrade_toys(database, FIRST, SECOND)
    upgrade_toys(database, FIRST)  # an old replica starts
    database.run_now(lambda each: each.execute("INSERT INTO roost_toys (id) VALUES ('bear')"), writes=True)
    assert database.run_now(lambda each: each.rows("SELECT * FROM roost_toys")) == [("bear", "red")]
    assert versions(database) == [(2, 1)]


def test_a_replica_that_is_too_old_refuses_to_start(database: Database) -> None:
    upgrade_toys(database, FIRST, SECOND, HARMFUL)
    with pytest.raises(
        StoreUnavailableError,
        match="tables of toys have version 3, for servers that know 3 or more, and this server knows 2",
    ):
        upgrade_toys(database, FIRST, SECOND)


def test_replicas_that_start_together_upgrade_once(database: Database) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: upgrade_toys(database, FIRST, SECOND), range(4)))
    assert versions(database) == [(2, 1)]


def contents(database: Database, address: str) -> dict[str, list[object]]:
    """Returns the rows of all tables of the store."""

    def read(transaction: Transaction) -> dict[str, list[object]]:
        names = table_names(transaction, address)
        return {name: sorted(map(repr, transaction.rows(f"SELECT * FROM {name}"))) for name in names}

    return database.run_now(read)


@pytest.mark.parametrize("feature", [each for each in load_features() if each.tables and each.tables.first > 1])
def test_a_store_of_a_former_server_is_refused_and_left_as_it_is(address: str, feature: Feature) -> None:
    assert feature.tables is not None
    drop_tables(address)
    database = Database(dialect_of(StoreAddress.parse(address)))
    for statement in (
        "CREATE TABLE roost_schemas (feature TEXT PRIMARY KEY, version INTEGER NOT NULL, oldest INTEGER NOT NULL)",
        f"INSERT INTO roost_schemas VALUES ('{feature.name}', 1, 1)",
        "CREATE TABLE roost_work (id TEXT)",
        "INSERT INTO roost_work VALUES ('kept')",
    ):
        database.run_now(lambda each, statement=statement: each.execute(statement), writes=True)
    before = contents(database, address)
    found = f"the store's tables of {feature.name} have version 1, and this server needs {feature.tables.first}"
    with pytest.raises(StoreUnusableError, match=f"^--store .*: {found} or more: finish its work .*another --store$"):
        open_database(StoreAddress.parse(address), feature.tables)
    assert contents(database, address) == before
    database.close()
    drop_tables(address)


@pytest.mark.parametrize("feature", [each for each in load_features() if each.tables and each.tables.first > 1])
def test_a_store_of_this_server_is_refused_by_former_ones_and_left_as_it_is(address: str, feature: Feature) -> None:
    """They have the same rule, and made the tables by as many upgrades as the first version had before it."""
    assert feature.tables is not None
    database = opened(address)
    before = contents(database, address)
    upgrades = [Upgrade([f"CREATE TABLE roost_old{number} (id TEXT)"], 1) for number in range(1, feature.tables.first)]
    last = feature.tables.first - 1
    with pytest.raises(
        StoreOutdatedError, match=f"for servers that know {last + 1} or more, and this server knows {last}"
    ):
        open_database(StoreAddress.parse(address), Tables(feature.name, upgrades))
    assert contents(database, address) == before
    database.close()


def test_the_tables_of_a_version_stay_as_they_are() -> None:
    """They follow from records: a field that is added needs an upgrade, which adds its column to existing tables.

    Until a release has the version, write the new text into the file instead.
    """
    written = "".join(
        f"-- {feature.name} {version}\n" + "".join(f"{' '.join(each.split())};\n" for each in step.statements)
        for feature in load_features()
        if feature.tables is not None
        for version, step in enumerate(feature.tables.upgrades, feature.tables.first)
    )
    assert written == Path(__file__).with_name("tables.sql").read_text()


def test_current_tables_are_not_touched(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role without the right to make tables can use them."""
    upgrade_toys(database, FIRST, SECOND)
    statements: list[str] = []

    def run(transaction: Transaction) -> None:
        execute = transaction.execute
        monkeypatch.setattr(
            transaction, "execute", lambda sql, *values: statements.append(sql) or execute(sql, *values)
        )
        upgrade(transaction, Tables("toys", (FIRST, SECOND)))

    database.run_now(run, writes=True)
    assert not [each for each in statements if each.split()[0] in ("CREATE", "ALTER", "DELETE", "INSERT")]


EXPANSIONS = re.compile(
    r"""
    CREATE\ TABLE\ .* | CREATE\ INDEX\ .* | DROP\ INDEX\ .*
    | ALTER\ TABLE\ \w+\ ADD\ COLUMN\ (?!.*\b(UNIQUE|CHECK|REFERENCES|PRIMARY)\b)(?!.*\bNOT\ NULL(?!\ DEFAULT)).*
    """,
    re.VERBOSE,
)
"""Statements after which older code works as before."""


def mistakes(tables: Tables) -> list[int]:
    """Returns the upgrades that let older code use tables that they change, or that exclude newer code."""
    found = []
    for version, (before, step) in enumerate(pairwise(tables.upgrades), tables.first + 1):
        only_expands = all(EXPANSIONS.fullmatch(" ".join(each.split())) for each in step.statements)
        is_kept = step.oldest == before.oldest and only_expands
        if not is_kept and not before.oldest < step.oldest <= version:
            found.append(version)
    return found


@pytest.mark.parametrize("feature", [each for each in load_features() if each.tables])
def test_upgrades_only_expand_or_exclude_older_code(feature: Feature) -> None:
    assert feature.tables is not None
    assert mistakes(feature.tables) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE roost_toys",
        "ALTER TABLE roost_toys DROP COLUMN id",
        "ALTER TABLE roost_toys RENAME COLUMN id TO name",
        "ALTER TABLE roost_toys ADD COLUMN size BIGINT NOT NULL",
        "ALTER TABLE roost_toys ADD COLUMN size BIGINT UNIQUE",
        "ALTER TABLE roost_toys\n ADD COLUMN size BIGINT CHECK (size > 0)",
        "CREATE UNIQUE INDEX roost_toys_ids ON roost_toys (id)",
        "UPDATE roost_toys SET id = lower(id)",
    ],
)
def test_an_upgrade_that_does_not_only_expand_excludes_older_code(statement: str) -> None:
    assert mistakes(Tables("toys", (FIRST, Upgrade([statement], oldest=1)))) == [2]
    assert mistakes(Tables("toys", (FIRST, Upgrade([statement], oldest=2)))) == []


@pytest.mark.parametrize("oldest", [1, 3])
def test_an_upgrade_neither_lets_code_back_in_nor_excludes_its_own(oldest: int) -> None:
    before = (FIRST, Upgrade(["DROP TABLE roost_toys"], oldest=2)) if oldest == 1 else (FIRST,)
    upgrades = (*before, Upgrade(["CREATE TABLE roost_dolls (id TEXT)"], oldest=oldest))
    assert mistakes(Tables("toys", upgrades)) == [len(upgrades)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE roost_dolls (id TEXT NOT NULL UNIQUE)",
        "CREATE INDEX roost_toys_ids ON roost_toys (id)",
        "DROP INDEX roost_toys_ids",
        "ALTER TABLE roost_toys ADD COLUMN size BIGINT",
        "\n ALTER TABLE roost_toys\n ADD COLUMN size BIGINT NOT NULL DEFAULT 0\n",
    ],
)
def test_an_upgrade_that_only_expands_lets_older_code_go_on(statement: str) -> None:
    assert mistakes(Tables("toys", (FIRST, Upgrade([statement], oldest=1)))) == []
