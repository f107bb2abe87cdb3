"""Differences between SQLite and PostgreSQL. All statements are written once, with `?` for values."""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, runtime_checkable

from .address import StoreAddress
from .errors import StoreFullError, StoreUnavailableError

CONNECT_TIMEOUT_S: Final = 3
STATEMENT_TIMEOUT_S: Final = 5
"""Maximum time of a statement, waiting for locks included."""

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
      words: Replacements for the names in braces in statements: `{now}` (seconds since 1970 by the database's clock),
        `{skip_locked}` (locks the selected rows, leaving out locked ones), `{lock}` (locks them, waiting), `{bytes}`.
    """

    words: Mapping[str, str]

    @property
    def begin_write(self) -> str:
        """Statement that begins a transaction that writes."""

    @property
    def lock_schema(self) -> str | None:
        """Statement that lets one process at a time upgrade the schema; None if `begin_write` does."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """All exceptions of the driver."""

    def connect(self) -> Connection:
        """Returns a new connection."""

    def sql(self, text: str) -> str:
        """Returns a statement in the words of this database."""

    def unavailable(self, error: Exception) -> StoreUnavailableError | None:
        """Returns the store's error for one of `errors`, without passwords.

        None if the statement or its values are wrong, which is a bug: no database would take them later.
        """


class Sqlite:
    """SQLite in WAL mode, which several processes of one machine may share.

    A transaction that writes begins immediately: the file has one writer at a time, so no row has to be locked.
    """

    begin_write = "BEGIN IMMEDIATE"
    lock_schema = None
    errors = (sqlite3.Error,)
    _bugs = (sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.IntegrityError, sqlite3.NotSupportedError)

    def __init__(self, path: str) -> None:
        self._path = path
        now = "((julianday('now') - 2440587.5) * 86400.0)"
        self.words: Mapping[str, str] = {"now": now, "skip_locked": "", "lock": "", "bytes": "BLOB"}

    def connect(self) -> Connection:
        """Returns a new connection. Each commit reaches the disk before it returns."""
        connection = sqlite3.connect(
            self._path, timeout=STATEMENT_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except sqlite3.Error:  # the file is no database, or cannot be written
            connection.close()
            raise
        return connection

    def sql(self, text: str) -> str:
        """Returns a statement in SQLite's words."""
        return text.format_map(self.words)

    def unavailable(self, error: Exception) -> StoreUnavailableError | None:
        """Returns the store's error: the file is locked, full, read-only or corrupt, or has lost a table."""
        if isinstance(error, self._bugs):
            return None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind = StoreFullError if code == sqlite3.SQLITE_FULL else StoreUnavailableError
        return kind(f"the store's file cannot be used: {error}")


class Postgresql:
    """PostgreSQL 13 or later."""

    begin_write = "BEGIN"
    lock_schema = "SELECT pg_advisory_xact_lock(7304201)"

    def __init__(self, url: str) -> None:
        import psycopg  # which takes 100 ms, and which other stores don't need

        self._url = url
        self._connect: Callable[..., Any] = psycopg.connect
        self._full: type[Exception] = psycopg.errors.DiskFull
        self._bugs: tuple[type[Exception], ...] = (
            psycopg.DataError,
            psycopg.IntegrityError,
            psycopg.errors.SyntaxError,
        )
        self._misuse: type[Exception] = psycopg.ProgrammingError
        self.errors: tuple[type[Exception], ...] = (psycopg.Error,)
        now = "(extract(epoch from clock_timestamp())::float8)"
        skip_locked, lock = "FOR UPDATE SKIP LOCKED", "FOR UPDATE"
        self.words: Mapping[str, str] = {"now": now, "skip_locked": skip_locked, "lock": lock, "bytes": "BYTEA"}

    def connect(self) -> Connection:
        """Returns a new connection. The database itself ends statements and transactions that take too long."""
        options = f"-c statement_timeout={STATEMENT_TIMEOUT_S}s -c idle_in_transaction_session_timeout={_ABANDONED_S}s"
        connection: Connection = self._connect(
            self._url,
            autocommit=True,
            prepare_threshold=None,  # a pooler between may give each transaction another session
            connect_timeout=CONNECT_TIMEOUT_S,
            tcp_user_timeout=STATEMENT_TIMEOUT_S * 1000,
            keepalives_idle=STATEMENT_TIMEOUT_S,
            application_name="roost",
            options=options,
        )
        return connection

    def sql(self, text: str) -> str:
        """Returns a statement in PostgreSQL's words and psycopg's placeholders."""
        return text.format_map(self.words).replace("?", "%s")

    def unavailable(self, error: Exception) -> StoreUnavailableError | None:
        """Returns the store's error. The driver's text may name host and user, which are for the log only.

        Servers that are read-only, have lost a table or refuse a role raise an `InternalError` or a `ProgrammingError`,
        which pass when the server is put right. Only the driver itself raises a `ProgrammingError` without a code.
        """
        is_drivers = isinstance(error, self._misuse) and getattr(error, "sqlstate", None) is None
        if is_drivers or isinstance(error, self._bugs):
            return None
        kind = StoreFullError if isinstance(error, self._full) else StoreUnavailableError
        return kind(f"the store's database cannot be used: {' '.join(str(error).split())[:300]}")


def dialect_of(address: StoreAddress) -> Dialect:
    """Returns the dialect of an address, which must not be memory."""
    return Sqlite(address.target) if address.kind == "sqlite" else Postgresql(address.target)
