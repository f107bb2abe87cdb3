"""Transactions on worker threads, with a limit on time: a database that is away must not block the event loop."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from .dialects import STATEMENT_TIMEOUT_S, Connection, Cursor, Dialect
from .errors import StoreUnavailableError

_NUM_THREADS: Final = 4
"""Number of threads: one commits, the others read."""

TIMEOUT_S: Final = 2.0 * STATEMENT_TIMEOUT_S
"""Seconds after which a caller gets an error, whatever the database does."""


_logger: Final = logging.getLogger(__name__)


def placeholders(rows: int, columns: int) -> str:
    """Returns the placeholders of a statement's rows, such as `(?, ?), (?, ?)`."""
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


class Transaction:
    """One transaction, whose statements have `?` for values and the dialect's words in braces."""

    def __init__(self, connection: Connection, dialect: Dialect) -> None:
        self._connection = connection
        self._dialect = dialect

    def execute(self, sql: str, *values: Any) -> Cursor:
        """Runs one statement."""
        return self._connection.execute(self._dialect.sql(sql), values)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows."""
        return self.execute(sql, *values).fetchall()


class Database:
    """A database, with as many connections as transactions run at a time.

    Args:
      dialect: Kind and address of the database.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="store")
        self._idle: deque[Connection] = deque()
        self._running: set[object] = set()
        self._is_closed = False
        self._num_errors = 0
        self._failing: set[bool] = set()

    @property
    def is_stuck(self) -> bool:
        """Whether a transaction is still running on a thread, which would delay the end of the process."""
        return bool(self._running)

    async def run[T](
        self, work: Callable[[Transaction], T], *, writes: bool = False, timeout_s: float = TIMEOUT_S
    ) -> T:
        """Runs a transaction on a thread. It may still commit after the timeout, so writes have to be idempotent.

        Raises:
          StoreUnavailableError: The database is away, full, too slow, or refuses the transaction for now.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                return await loop.run_in_executor(self._threads, lambda: self.run_now(work, writes=writes))
        except TimeoutError:
            raise StoreUnavailableError(f"the store's database has not responded within {timeout_s:g} s") from None

    def run_now[T](self, work: Callable[[Transaction], T], *, writes: bool = False) -> T:
        """Runs a transaction on the current thread.

        Raises:
          StoreUnavailableError: The database is away, full, too slow, or refuses the transaction for now.
        """
        token, num_errors = object(), self._num_errors
        self._running.add(token)
        try:
            connection = self._begin(self._dialect.begin_write if writes else "BEGIN")
            try:
                result = work(Transaction(connection, self._dialect))
                connection.execute("COMMIT")
            except BaseException:
                self._drop(connection)
                raise
            self._put_back(connection, num_errors)
            self._note(None, writes=writes)
            return result
        except self._dialect.errors as error:
            unavailable = self._dialect.unavailable(error)
            if unavailable is None:
                raise
            self._num_errors += 1
            self._drop_idle()
            self._note(unavailable, writes=writes)
            raise unavailable from None
        finally:
            self._running.discard(token)

    def close(self) -> None:
        """Takes no more transactions, and closes all connections that are not in use."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._drop_idle()

    def _begin(self, statement: str) -> Connection:
        """Begins a transaction on an idle connection, or on a new one if that was lost meanwhile."""
        with suppress(IndexError):  # other threads pop, too
            connection = self._idle.pop()
            try:
                connection.execute(statement)
            except self._dialect.errors:
                self._drop(connection)
            else:
                return connection
        connection = self._dialect.connect()
        try:
            connection.execute(statement)
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _note(self, error: StoreUnavailableError | None, *, writes: bool) -> None:
        """Logs once when the database goes away, and once when it is back: one that can be read may refuse writes."""
        if error is not None:
            if not self._failing:
                _logger.warning("%s", error)
            self._failing.add(writes)
        elif self._failing:
            self._failing -= {False, writes}
            if not self._failing:
                _logger.info("the store's database can be used again")

    def _put_back(self, connection: Connection, num_errors: int) -> None:
        """Keeps a connection for later, unless the database has failed since `num_errors` was read."""
        if self._is_closed or num_errors != self._num_errors:
            self._drop(connection)
        else:
            self._idle.append(connection)

    def _drop_idle(self) -> None:
        """Closes all idle connections: each may still lead to a server that was demoted, or to a read-only session."""
        with suppress(IndexError):  # other threads pop, too
            while True:
                self._drop(self._idle.pop())

    def _drop(self, connection: Connection) -> None:
        """Closes a connection, which rolls back."""
        with suppress(*self._dialect.errors):
            connection.close()
