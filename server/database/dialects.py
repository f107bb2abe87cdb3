"""Differences between SQLite and PostgreSQL. All statements are written once, with `?` for values."""

import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, runtime_checkable
from uuid import uuid4

from .address import StoreAddress
from .errors import StoreFullError, StoreUnavailableError

CONNECT_TIMEOUT_S: Final = 3
STATEMENT_TIMEOUT_S: Final = 5
"""Maximum seconds of a statement, including waiting for locks."""

_ABANDONED_S: Final = 5
"""Seconds after which PostgreSQL ends a transaction whose client has stopped in the middle of it."""


@runtime_checkable
class Cursor(Protocol):
    """Result of a statement."""

    @property
    def rowcount(self) -> int:
        """Number of rows that the statement has changed."""

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Returns all rows."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yields the rows. SQLite computes each row when it is fetched."""


@runtime_checkable
class Connection(Protocol):
    """Connection to a database, in autocommit mode."""

    def execute(self, sql: Any, values: Any = (), /) -> Cursor:
        """Runs one statement."""

    def close(self) -> None:
        """Closes the connection."""


@runtime_checkable
class Dialect(Protocol):
    """One kind of database.

    Attributes:
      is_shared: Whether other processes may use the database.
      words: Replacements for the names in braces in statements: `{now}` (seconds since 1970 by the database's clock),
        `{skip_locked}` (locks the selected rows, and skips locked ones), `{lock}` (locks them, waiting), `{bytes}`,
        `{has_table}` (whether a table exists whose name is the next value), `{lock_name}` (a statement that waits until
        no other transaction has locked the name that is the next value, and locks it).
    """

    is_shared: bool
    words: Mapping[str, str]

    @property
    def lock_schema(self) -> Sequence[str]:
        """Statements that let one process at a time upgrade the schema, until the upgrade has ended."""

    @property
    def lock_fence(self) -> Sequence[str]:
        """Statements that wait for all transactions that have passed the fence, and block others until the commit."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """All exception types of the driver."""

    @property
    def denials(self) -> tuple[type[Exception], ...]:
        """Exception types of the driver about a role that may not create or change tables."""

    def connect(self) -> Connection:
        """Returns a new connection."""

    def begin(self, *, writes: bool) -> Sequence[str]:
        """Returns the statements that begin a transaction."""

    def run_all(self, connection: Any, statements: Sequence[str]) -> Cursor:
        """Runs statements without values in one round trip, and returns the last one's result."""

    def interrupt(self, connection: Any) -> None:
        """Ends the statement that another thread runs on a connection; it has no effect between statements."""

    def sql(self, text: str) -> str:
        """Returns a statement with the words of this database."""

    def unavailable(self, error: Exception) -> StoreUnavailableError | None:
        """Returns the store's error for one of `errors`, without passwords.

        None if the statement or its values are wrong. That is a bug, and repeating the statement would not help.
        """


class Sqlite:
    """SQLite in WAL mode, which several processes of one machine may share.

    A transaction that writes begins immediately: the file has one writer at a time, so rows need not be locked.
    """

    is_shared = True
    lock_schema = ()
    lock_fence = ()
    errors = (sqlite3.Error,)
    denials: tuple[type[Exception], ...] = ()
    _bugs = (sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.IntegrityError, sqlite3.NotSupportedError)

    def __init__(self, path: str) -> None:
        self._path = path
        now = "((julianday('now') - 2440587.5) * 86400.0)"
        has_table = "EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?)"
        words = {"now": now, "skip_locked": "", "lock": "", "bytes": "BLOB", "has_table": has_table}
        self.words: Mapping[str, str] = {**words, "lock_name": "SELECT ?"}

    def connect(self) -> Connection:
        """Returns a new connection. Each commit reaches the disk before it returns.

        Only the owner may read and write a new file. SQLite gives its companion files the same permissions.
        """
        with suppress(OSError):  # the file exists, or SQLite reports why it cannot be created
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = _connection(self._path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:  # the file is not a database, or cannot be written
            connection.close()
            raise
        return connection

    def begin(self, *, writes: bool) -> Sequence[str]:
        """Returns the statement that begins a transaction."""
        return ("BEGIN IMMEDIATE" if writes else "BEGIN",)

    def run_all(self, connection: Any, statements: Sequence[str]) -> Cursor:
        """Runs statements in sequence, and returns the last one's result."""
        results: list[Cursor] = [connection.execute(each) for each in statements]
        return results[-1]

    def interrupt(self, connection: Any) -> None:
        """Ends the statement that another thread runs on a connection, unless it waits for the file's lock."""
        connection.interrupt()

    def sql(self, text: str) -> str:
        """Returns a statement with SQLite's words."""
        return text.format_map(self.words)

    def unavailable(self, error: Exception) -> StoreUnavailableError | None:
        """Returns the store's error: the file is locked, full, read-only or corrupt, or has lost a table."""
        if isinstance(error, self._bugs):
            return None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind = StoreFullError if code == sqlite3.SQLITE_FULL else StoreUnavailableError
        return kind(f"the store's file cannot be used: {error}")


class Memory(Sqlite):
    """SQLite in the memory of this process, until this object is gone."""

    is_shared = False

    def __init__(self) -> None:
        super().__init__(f"file:/roost-{uuid4().hex}?vfs=memdb")
        self._opened: list[Connection] = []
        weakref.finalize(self, _close_all, self._opened)

    def connect(self) -> Connection:
        """Returns a new connection. The database lasts for as long as it has one, so the first is never returned."""
        for _ in range(1 if self._opened else 2):
            self._opened.append(_connection(self._path))
        return self._opened[-1]


def _close_all(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()


def _connection(path: str) -> sqlite3.Connection:
    is_uri = path.startswith("file:")
    return sqlite3.connect(path, timeout=STATEMENT_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=is_uri)


class Postgresql:
    """PostgreSQL 13 or later, and poolers that give each transaction another session.

    Therefore statements are not prepared, locks do not outlast a transaction, and settings are set per transaction:
    poolers refuse settings of a session.
    """

    is_shared = True
    lock_schema = ("SET LOCAL statement_timeout = 0", "SELECT pg_advisory_xact_lock(7304201)")
    lock_fence = ("LOCK TABLE roost_schemas IN ACCESS EXCLUSIVE MODE",)  # each transaction reads the table first

    def __init__(self, url: str) -> None:
        import psycopg  # takes 100 ms to import, and other stores don't need it

        from . import hosts

        self._url = url
        self._connect: Callable[..., Any] = hosts.connect
        self._full: type[Exception] = psycopg.errors.DiskFull
        self._bugs: tuple[type[Exception], ...] = (
            psycopg.DataError,
            psycopg.IntegrityError,
            psycopg.errors.SyntaxError,
        )
        self._misuse: type[Exception] = psycopg.ProgrammingError
        self.errors: tuple[type[Exception], ...] = (psycopg.Error,)
        self.denials: tuple[type[Exception], ...] = (
            psycopg.errors.InsufficientPrivilege,
            psycopg.errors.InvalidSchemaName,
        )
        now = "(SELECT extract(epoch from clock_timestamp())::float8)"  # computed once, so that indexes can be used
        words = {"now": now, "skip_locked": "FOR UPDATE SKIP LOCKED", "lock": "FOR UPDATE", "bytes": "BYTEA"}
        lock_name = "SELECT pg_advisory_xact_lock(7304202, hashtext(?))"
        self.words: Mapping[str, str] = {
            **words,
            "has_table": "to_regclass(?) IS NOT NULL",
            "lock_name": lock_name,
        }

    def connect(self) -> Connection:
        """Returns a new connection.

        A server that has disappeared is noticed after at most two keep-alives, since a commit that waits for a standby
        is not interrupted.
        """
        return self._connect(
            self._url,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=CONNECT_TIMEOUT_S,
            tcp_user_timeout=STATEMENT_TIMEOUT_S * 1000,
            keepalives_idle=STATEMENT_TIMEOUT_S,
            keepalives_interval=STATEMENT_TIMEOUT_S,
            application_name="roost",
        )

    def begin(self, *, writes: bool) -> Sequence[str]:
        """Returns the statements that begin a transaction. The database ends the transaction if it takes too long."""
        return (
            "BEGIN",
            f"SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT_S}s'",
            f"SET LOCAL idle_in_transaction_session_timeout = '{_ABANDONED_S}s'",
        )

    def run_all(self, connection: Any, statements: Sequence[str]) -> Cursor:
        """Sends statements as one message, and returns the last one's result."""
        results = connection.execute("; ".join(statements))
        while results.nextset():
            pass
        return results

    def interrupt(self, connection: Any) -> None:
        """Requests the server to end the statement that another thread runs on a connection."""
        connection.cancel_safe(timeout=CONNECT_TIMEOUT_S)

    def sql(self, text: str) -> str:
        """Returns a statement with PostgreSQL's words and psycopg's placeholders."""
        return text.format_map(self.words).replace("?", "%s")

    def unavailable(self, error: Exception) -> StoreUnavailableError | None:
        """Returns the store's error. The driver's text may name host and user, and is only logged.

        Servers that are read-only, have lost a table or refuse a role raise an `InternalError` or a `ProgrammingError`.
        These errors end when the server is repaired. Only the driver itself raises a `ProgrammingError` without a code.
        """
        is_drivers = isinstance(error, self._misuse) and getattr(error, "sqlstate", None) is None
        if is_drivers or isinstance(error, self._bugs):
            return None
        kind = StoreFullError if isinstance(error, self._full) else StoreUnavailableError
        diagnosis = getattr(getattr(error, "diag", None), "message_primary", None)  # without the statement's text
        return kind(f"the store's database cannot be used: {' '.join((diagnosis or str(error)).split())[:300]}")


def dialect_of(address: StoreAddress) -> Dialect:
    """Returns the dialect of an address."""
    match address.kind:
        case "memory":
            return Memory()
        case "sqlite":
            return Sqlite(address.target)
    return Postgresql(address.target)
