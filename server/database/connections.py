"""Pool of connections for transactions."""

from collections import deque
from contextlib import suppress

from .dialects import Connection, Cursor, Dialect


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
