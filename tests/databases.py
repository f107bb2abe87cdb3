"""Databases for tests: SQLite in a folder, and a PostgreSQL of the tests' own on loopback."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ports import free_port

if TYPE_CHECKING:
    from roost.server.database.database import Database, Transaction
    from roost.server.database.schema import Tables

KINDS = ("sqlite", "postgresql")


def postgresql_program(name: str) -> str | None:
    """Returns one of PostgreSQL's programs, which Debian keeps out of the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))


def unprivileged() -> str | None:
    """Returns the user that PostgreSQL runs as, since it refuses to run as root; None is the present one."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)


@dataclass
class PostgresqlServer:
    """A server of the tests' own.

    Attributes:
      process: Its first process.
      port: Port on loopback.
      waits_for_disk: Whether each commit does, as by default.
    """

    folder: Path
    port: int
    waits_for_disk: bool = False
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"postgresql://roost:sesame@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts the server, and waits until it takes connections."""
        server = postgresql_program("postgres")
        assert server is not None
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "max_connections=60"]
        options += ["-c", "autovacuum=off"]  # between a test's inserts and their commit, it notes an empty table
        options += [] if self.waits_for_disk else ["-F"]
        command = [server, "-D", str(self.folder), *options]
        with (self.folder.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(command, user=unprivileged(), stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + 120
        while not self._accepts():
            assert time.monotonic() < deadline, (self.folder.parent / "log").read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """Stops the server at once, as if its machine had gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(120)

    def _accepts(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True


@contextmanager
def postgresql_server(*, waits_for_disk: bool = False) -> Iterator[PostgresqlServer]:
    """Runs PostgreSQL on a free port; skips the test where it is not installed.

    Its folder lies apart from pytest's, which each run of pytest closes to the user that PostgreSQL runs as.
    """
    with tempfile.TemporaryDirectory(prefix="roost-postgresql-") as folder:
        server = made_server(Path(folder))
        server.waits_for_disk = waits_for_disk
        server.start()
        try:
            yield server
        finally:
            server.stop()


def made_server(folder: Path) -> PostgresqlServer:
    """Returns a server with an empty database in a folder."""
    initdb = postgresql_program("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed")
    user = unprivileged()
    data = folder / "data"
    if user is not None:
        shutil.chown(folder, user)
    password = folder / "password"
    password.write_text("sesame")
    password.chmod(0o644)
    options = ["-U", "roost", "-A", "scram-sha-256", "--pwfile", str(password), "--no-sync", "--no-instructions"]
    subprocess.run([initdb, "-D", str(data), *options], user=user, check=True, capture_output=True, cwd="/")
    return PostgresqlServer(data, free_port())


FAULTS = {
    "read-only": (
        "ALTER DATABASE faulty SET default_transaction_read_only = on",
        "ALTER DATABASE faulty RESET default_transaction_read_only",
    ),
    "no privilege": (
        "REVOKE ALL ON roost_responses, roost_events FROM clerk",
        "GRANT ALL ON roost_responses, roost_events TO clerk",
    ),
    "no privilege for the log": ("REVOKE INSERT ON roost_events FROM clerk", "GRANT INSERT ON roost_events TO clerk"),
    "no table": ("ALTER TABLE roost_responses RENAME TO lost", "ALTER TABLE lost RENAME TO roost_responses"),
}
"""What makes each fault of a database, and what mends it."""


@dataclass
class FaultyDatabase:
    """A database of its own user, who is no superuser, and whose administrator makes faults."""

    server: PostgresqlServer

    @property
    def url(self) -> str:
        return f"postgresql://clerk:sesame@127.0.0.1:{self.server.port}/faulty"

    def make(self, fault: str) -> None:
        """Makes a fault, and ends all sessions, as a failover does."""
        self.administer(FAULTS[fault][0])
        self.end_sessions()

    def end_sessions(self) -> None:
        """Ends all sessions, and waits for it: one that a pooler hands out meanwhile fails its client."""
        others = "pg_stat_activity WHERE datname = 'faulty' AND pid <> pg_backend_pid()"
        self.administer(f"SELECT pg_terminate_backend(pid, 10000) FROM {others}")

    def mend(self, fault: str) -> None:
        """Mends a fault. Sessions that have begun meanwhile go on, and stay as they are."""
        self.administer(FAULTS[fault][1])

    def administer(self, sql: str, name: str = "faulty") -> None:
        """Runs a statement as a superuser, in a session that may write."""
        import psycopg

        url = f"postgresql://roost:sesame@127.0.0.1:{self.server.port}/{name}"
        with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            connection.execute(sql)


@contextmanager
def faulty_database(server: PostgresqlServer) -> Iterator[FaultyDatabase]:
    """Makes an empty database with the store's tables, and drops it."""
    database = FaultyDatabase(server)
    database.administer("CREATE DATABASE faulty", "postgres")
    database.administer("CREATE ROLE clerk LOGIN PASSWORD 'sesame'", "postgres")
    try:
        database.administer("GRANT ALL ON SCHEMA public TO clerk")
        opened(database.url).close()
        yield database
    finally:
        database.administer("DROP DATABASE faulty WITH (FORCE)", "postgres")
        database.administer("DROP ROLE clerk", "postgres")


def table_names(transaction: "Transaction", address: str) -> list[str]:
    """Returns the names of all tables of the store."""
    if address.startswith("postgresql"):
        rows = transaction.rows("SELECT tablename FROM pg_tables WHERE tablename LIKE 'roost%%'")
    else:
        rows = transaction.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'roost%'")
    return [name for (name,) in rows]


def drop_tables(address: str) -> None:
    """Drops all tables of the store."""
    from roost.server.database.address import StoreAddress
    from roost.server.database.database import (
        Database,  # only where Roost is installed
        dialect_of,
    )

    database = Database(dialect_of(StoreAddress.parse(address)))
    for name in database.run_now(lambda each: table_names(each, address)):
        database.run_now(lambda each, name=name: each.execute(f"DROP TABLE {name}"), writes=True)
    database.close()


def upgrade_further(address: str, tables: "Tables", *statements: str, oldest: int) -> None:
    """Upgrades a feature's tables to the version after this code's, as a server of a later release does.

    Args:
      oldest: Oldest version of the code that may use the database afterwards.
    """
    from roost.server.database.address import StoreAddress
    from roost.server.database.database import open_database  # only where Roost is installed
    from roost.server.database.schema import Upgrade

    later = replace(tables, upgrades=(*tables.upgrades, Upgrade(statements, oldest)))
    open_database(StoreAddress.parse(address), later).close()


def opened(address: str, *, clocked: bool = False) -> "Database":
    """Returns a database with the store's tables, empty.

    Args:
      clocked: Whether a table holds the clock, so that a test can move it.
    """
    from roost.server.database.address import StoreAddress
    from roost.server.database.database import Database, dialect_of, upgrade
    from roost.server.feature import load_features

    dialect = dialect_of(StoreAddress.parse(address))
    if clocked:
        dialect.words = {**dialect.words, "now": "(SELECT now FROM test_clock)"}
    database = Database(dialect)

    def prepare(transaction: "Transaction") -> None:
        for feature in load_features():
            if feature.tables is not None:
                upgrade(transaction, feature.tables)
        for name in table_names(transaction, address):
            if name != "roost_schemas":
                transaction.execute(f"DELETE FROM {name}")
        transaction.execute("CREATE TABLE IF NOT EXISTS test_clock (now DOUBLE PRECISION)")
        transaction.execute("DELETE FROM test_clock")
        transaction.execute("INSERT INTO test_clock VALUES (1000)")

    database.run_now(prepare, writes=True)
    return database
