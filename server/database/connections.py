"""Connections for transactions, and calls of transactions, which are interrupted when their callers leave."""

from collections import deque
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Final

from .dialects import Connection, Cursor, Dialect
from .errors import StoreUnavailableError

_REPEAT_S: Final = 0.1
"""Seconds between two interrupts of one transaction. An interrupt between two statements has no effect."""


class Connections:
    """Pool of connections to a database, as many as transactions run at a time. Threads may share an instance.

    Args:
      dialect: Kind and address of the database.

    Attributes:
      num_errors: Number of times that the database has failed.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.num_errors = 0
        self._dialect = dialect
        self._idle: deque[Connection] = deque()
        self._is_closed = False

    def begin(self, *statements: str) -> tuple[Connection, Cursor]:
        """Begins a transaction on an idle connection, or on a new one if the idle connection was lost.

        Args:
          statements: Statement that begins the transaction, and its first statements.

        Returns:
          The connection, and the result of the last statement.
        """
        with suppress(IndexError):  # other threads pop, too
            connection = self._idle.pop()
            try:
                return connection, self._dialect.run_all(connection, statements)
            except self._dialect.errors:
                self.drop(connection)
        connection = self._dialect.connect()
        try:
            return connection, self._dialect.run_all(connection, statements)
        except BaseException:
            self.drop(connection)
            raise

    def put_back(self, connection: Connection, num_errors: int) -> None:
        """Returns a connection to the pool, unless the database has failed since `num_errors` was read."""
        if num_errors != self.num_errors:
            self.drop(connection)
            return
        self._idle.append(connection)
        if self._is_closed or num_errors != self.num_errors:  # may have been closed by another thread
            self._drop_idle()

    def fail(self) -> None:
        """Closes all idle connections: each may still lead to a server that was demoted, or to a read-only session.

        Connections in use are closed after their transactions.
        """
        self.num_errors += 1
        self._drop_idle()

    def close(self) -> None:
        """Closes all idle connections, and connections in use after their transactions."""
        self._is_closed = True
        self.fail()

    def _drop_idle(self) -> None:
        with suppress(IndexError):  # other threads pop, too
            while True:
                self.drop(self._idle.pop())

    def drop(self, connection: Connection) -> None:
        """Closes a connection, which rolls back its transaction."""
        with suppress(*self._dialect.errors):
            connection.close()


class Call:
    """A transaction that runs on one thread, and whose caller may leave on another.

    Args:
      dialect: Kind of the database.

    Attributes:
      has_begun: Whether a thread is running or has run the transaction.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.has_begun = False
        self._dialect = dialect
        self._connection: Connection | None = None
        self._is_abandoned = False
        self._lock = Lock()
        self._ended = Event()

    def begin(self) -> None:
        """Marks the transaction as running on a thread.

        Raises:
          StoreUnavailableError: The caller has left.
        """
        with self._lock:
            self.check()
            self.has_begun = True

    def use(self, connection: Connection) -> None:
        """Sets the connection whose statements are interrupted when the caller leaves."""
        self._connection = connection
        self.check()

    def check(self) -> None:
        """Checks that the caller has not left.

        Raises:
          StoreUnavailableError: The caller has left.
        """
        if self._is_abandoned:
            raise StoreUnavailableError("the transaction's caller has left")

    def end(self) -> None:
        """Marks the transaction as committing or ended, so that it is not interrupted any more."""
        with self._lock:
            self._ended.set()

    def abandon(self) -> None:
        """Interrupts the transaction, or prevents its start. A commit is not interrupted."""
        with self._lock:
            if self._ended.is_set():
                return
            self._is_abandoned = True
            if self.has_begun:
                Thread(target=self._interrupt, name="store-interrupt", daemon=True).start()

    def _interrupt(self) -> None:
        while not self._ended.is_set():
            if self._connection is not None:
                with suppress(*self._dialect.errors):
                    self._dialect.interrupt(self._connection)
            self._ended.wait(_REPEAT_S)
