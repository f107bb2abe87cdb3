"""SQLite, in a file or in memory. All statements are written once for both databases, with `?` for values."""

import os
import sqlite3
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from .errors import StoreFullError, StoreUnavailableError

if TYPE_CHECKING:
    import psycopg

CONNECT_TIMEOUT_S: Final = 3
STATEMENT_TIMEOUT_S: Final = 5
"""Maximum seconds of a statement, including waiting for locks."""


type Cursor = "sqlite3.Cursor | psycopg.Cursor[Any]"
"""Result of a statement. SQLite computes each row when it is fetched."""

type Connection = "sqlite3.Connection | psycopg.Connection[Any]"
"""Connection to a database, in autocommit mode. Closing it rolls back its transaction."""

LEASE_S: Final = 15.0
"""Seconds after its last renewal at which a lease ends, so that other processes may claim the work."""


class Sqlite:
    """SQLite in WAL mode, which several processes of one machine may share.

    A transaction that writes begins immediately: the file has one writer at a time, so rows need not be locked.

    Attributes:
      is_shared: Whether other processes may use the database.
      lock_schema: Statements that let one process at a time upgrade the schema, until the upgrade has ended.
      lock_fence: Statements that wait for all transactions that have passed the fence, and block others until the
        commit.
      errors: All exception types of the driver.
      denials: Exception types of the driver about a role that may not create or change tables.
      words: Replacements for the names in braces in statements: `{now}` (seconds since 1970 by the database's clock),
        `{skip_locked}` (locks the selected rows, and skips locked ones), `{lock}` (locks them, waiting), `{bytes}`,
        `{has_table}` (whether a table exists whose name is the next value), `{lock_name}` (a statement that waits until
        no other transaction has locked the name that is the next value, and locks it), `{lease_s}` (seconds for which a
        lease lasts).
    """

    is_shared = True
    lock_schema: Sequence[str] = ()
    lock_fence: Sequence[str] = ()
    errors: tuple[type[Exception], ...] = (sqlite3.Error,)
    denials: tuple[type[Exception], ...] = ()
    words: Mapping[str, str] = {
        "now": "((julianday('now') - 2440587.5) * 86400.0)",
        "skip_locked": "",
        "lock": "",
        "bytes": "BLOB",
        "has_table": "EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?)",
        "lock_name": "SELECT ?",
        "lease_s": str(LEASE_S),
    }
    _bugs = (sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.IntegrityError, sqlite3.NotSupportedError)

    def __init__(self, path: str) -> None:
        self._path = path

    def connect(self) -> Connection:
        """Returns a new connection. Each commit reaches the disk before it returns.

        Only the owner may read and write a new file. SQLite gives its companion files the same permissions.
        """
        with suppress(OSError):  # the file exists, or SQLite reports why it cannot be created
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=STATEMENT_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
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
        """Runs statements without values in sequence, and returns the last one's result."""
        results: list[Cursor] = [connection.execute(each) for each in statements]
        return results[-1]

    def interrupt(self, connection: Any) -> None:
        """Ends the statement that another thread runs on a connection, unless it waits for the file's lock."""
        connection.interrupt()

    def sql(self, text: str) -> str:
        """Returns a statement with SQLite's words."""
        return text.format_map(self.words)

    def unavailable(self, error: Exception) -> StoreUnavailableError | None:
        """Returns the store's error for one of `errors`: the file is locked, full, read-only or corrupt, or has lost a
        table.

        None if the statement or its values are wrong. That is a bug, and repeating the statement would not help.
        """
        if isinstance(error, self._bugs):
            return None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kind = StoreFullError if code == sqlite3.SQLITE_FULL else StoreUnavailableError
        return kind(f"the store's file cannot be used: {error}")


class Memory(Sqlite):
    """SQLite in the memory of this process, until this object is gone. One transaction runs after the other.

    Leases do not end: nobody else could claim the work, and the time of day may jump, as after a suspension.
    """

    is_shared = False
    words: Mapping[str, str] = {**Sqlite.words, "lease_s": "1e12"}

    def __init__(self) -> None:
        super().__init__(":memory:")
        self._connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, factory=_OnlyConnection
        )
        weakref.finalize(self, sqlite3.Connection.close, self._connection)

    def connect(self) -> Connection:
        """Returns the only connection."""
        return self._connection


class _OnlyConnection(sqlite3.Connection):
    """Connection that is not closed, but left to the next transaction."""

    def close(self) -> None:
        self.rollback()
