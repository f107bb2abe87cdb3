"""Transactions on threads, with a time limit, so that an unavailable database does not block the event loop.

Those in memory run on the event loop.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from functools import cache, partial
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Final

from ..tenants import Workers, WorkersClosedError
from .address import StoreAddress
from .dialects import STATEMENT_TIMEOUT_S, Connection, Cursor, Memory, Sqlite
from .errors import StoreClosedError, StoreOutdatedError, StoreUnavailableError, StoreUnusableError
from .schema import Tables

if TYPE_CHECKING:
    from .postgresql import Postgresql

TIMEOUT_S: Final = 2.0 * STATEMENT_TIMEOUT_S
"""Seconds after which a caller gets an error, even if the database does not respond."""

PROBE_S: Final = 1.0
"""Seconds between two probes of a database that fails."""

_PATIENCE_S: Final = 2 * PROBE_S
"""Seconds for which a request waits for a probe that succeeds."""

_OUTAGE_S: Final = 30.0
"""Seconds for which an open stream waits for an unavailable database."""

_REPEAT_S: Final = 0.1
"""Seconds between two interrupts of one transaction, or two attempts of a stream to read. An interrupt between two
statements has no effect."""

_OTHERS: Final = 0o077
"""Permission bits of users other than the owner."""

_logger: Final = logging.getLogger(__name__)


class Lane(Enum):
    """Kinds of transactions. Each kind has separate threads and connections, so that no kind waits for another.

    Attributes:
      READS: Reads. Tenants take turns, and no tenant occupies all threads.
      COMMITS: Writes that a client waits for, one transaction at a time.
      UPLOADS: Writes of files, lines of batches and usage, one transaction at a time.
      LEASES: Claims and renewals of leases, one transaction at a time.
    """

    READS = "read"
    COMMITS = "commit"
    UPLOADS = "upload"
    LEASES = "lease"


type Dialect = "Sqlite | Postgresql"
"""One kind of database. Both have the same attributes and methods."""


def dialect_of(address: StoreAddress) -> Dialect:
    """Returns the database at an address."""
    match address.kind:
        case "memory":
            return Memory()
        case "sqlite":
            return Sqlite(address.target)
    from .postgresql import Postgresql  # whose driver takes 100 ms to import

    return Postgresql(address.target)


class Transaction:
    """A transaction that runs on one thread, and whose caller may leave on another.

    Statements have `?` for values, and the dialect's words in braces.

    Args:
      dialect: Kind of the database.

    Attributes:
      has_begun: Whether a thread is running or has run the transaction.
      has_written: Whether a statement that may write has run.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.has_begun = self.has_written = False
        self.dialect = dialect
        self._connection: Connection | None = None
        self._is_abandoned = False
        self._lock = Lock()
        self._ended = Event()

    def execute(self, sql: str, *values: Any) -> Cursor:
        """Runs one statement."""
        self.check()
        assert self._connection is not None
        statement = self.dialect.sql(sql)
        cursor = self._connection.execute(statement, values)
        self.has_written |= not statement.startswith("SELECT ")  # as a lock on a name is, too
        return cursor

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows."""
        return self.execute(sql, *values).fetchall()

    def begin(self) -> None:
        """Marks the transaction as running on a thread, unless the caller has left."""
        with self._lock:
            self.check()
            self.has_begun = True

    def use(self, connection: Connection) -> None:
        """Sets the connection, whose statements are interrupted when the caller leaves."""
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
            with self._lock, suppress(*self.dialect.errors):  # the next transaction may have the same connection
                if self._connection is not None and not self._ended.is_set():
                    self.dialect.interrupt(self._connection)
            self._ended.wait(_REPEAT_S)


def placeholders(rows: int, columns: int) -> str:
    """Returns the placeholders of a statement's rows, such as `(?, ?), (?, ?)`."""
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


_NUM_READERS: Final = 3
"""Number of threads for reads."""


class Pool:
    """Threads and connections of a server, which its features share: as many as transactions run at a time.

    Args:
      dialect: Kind and address of the database.

    Attributes:
      workers: Threads of each kind of transactions.
      num_errors: Number of times that the database has failed.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        # the server itself also reads, and counts as a tenant
        self.workers = {Lane.READS: Workers(tenants=2, num_threads=_NUM_READERS, name="store-read")}
        for lane in (Lane.COMMITS, Lane.UPLOADS, Lane.LEASES):
            self.workers[lane] = Workers(num_threads=1, name=f"store-{lane.value}")
        self.num_errors = 0
        self._idle = {lane: deque[Connection]() for lane in Lane}
        self._num_users = 0

    def enter(self) -> None:
        """Adds a user."""
        self._num_users += 1

    def leave(self) -> None:
        """Removes a user. The last one closes all: waiting transactions fail."""
        self._num_users -= 1
        if not self._num_users:
            for workers in self.workers.values():
                workers.close()
            self.fail()

    @contextmanager
    def transaction(self, lane: Lane, *statements: str) -> Iterator[tuple[Connection, Cursor]]:
        """Commits a transaction after the `with` block, unless it raises.

        The transaction has an idle connection, or a new one if there is none or it was lost.

        Args:
          lane: Kind of the transaction.
          statements: Statement that begins the transaction, and its first statements.

        Yields:
          The connection, and the result of the last statement.
        """
        num_errors = self.num_errors
        connection, first = self._begin(lane, statements)
        try:
            yield connection, first
            connection.execute("COMMIT")
        except BaseException:
            self._drop(connection)
            raise
        self._idle[lane].append(connection)
        if num_errors != self.num_errors or not self._num_users:  # another thread may have failed or closed it
            self._drop_idle()

    def fail(self) -> None:
        """Closes all idle connections: each may still lead to a server that was demoted, or to a read-only session.

        Connections in use are closed after their transactions.
        """
        self.num_errors += 1
        self._drop_idle()

    def _begin(self, lane: Lane, statements: Sequence[str]) -> tuple[Connection, Cursor]:
        with suppress(IndexError):  # other threads pop, too
            connection = self._idle[lane].pop()
            try:
                return connection, self.dialect.run_all(connection, statements)
            except self.dialect.errors:
                self._drop(connection)
        connection = self.dialect.connect()
        try:
            return connection, self.dialect.run_all(connection, statements)
        except BaseException:
            self._drop(connection)
            raise

    def _drop_idle(self) -> None:
        for idle in self._idle.values():
            with suppress(IndexError):  # other threads pop, too
                while True:
                    self._drop(idle.pop())

    def _drop(self, connection: Connection) -> None:
        with suppress(*self.dialect.errors):
            connection.close()


class Database:
    """The tables of a feature in a database, or all tables of it.

    Args:
      pool: Shared threads and connections, or the dialect with which this object opens its own.
      tables: Tables that are created and upgraded before the first other transaction, which is repeated while the
        database is unavailable. Later transactions check their version. None uses tables of any version.

    Attributes:
      name: Name of the tables for metrics and readiness.
      outdated: Why this server may no longer use the database; None while it may.
      probe: Transaction that writes to the feature's tables, and deletes what it wrote. While the database fails, it is
        repeated until it succeeds. None waits for the feature's transactions to succeed.
    """

    def __init__(self, pool: Pool | Dialect, tables: Tables | None = None) -> None:
        self.name = "store" if tables is None else tables.feature
        self.outdated: str | None = None
        self.probe: Callable[[Transaction], None] | None = None
        self._tables = tables
        self._is_prepared = tables is None
        self._pool = pool if isinstance(pool, Pool) else Pool(pool)
        self._pool.enter()
        self._dialect = self._pool.dialect
        self._is_closed = False
        self._preparing: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._running = set[Transaction]()
        self._failing: dict[Lane, StoreUnavailableError] = {}

    @property
    def is_shared(self) -> bool:
        """Whether other processes may use the database."""
        return self._dialect.is_shared

    @property
    def is_stuck(self) -> bool:
        """Whether a transaction is still running on a thread, which would delay the exit of the process."""
        return bool(self._running)

    @property
    def is_available(self) -> bool:
        """Whether the tables exist, and the last transaction of each kind reached the database."""
        return self._is_prepared and self.outdated is None and not self._failing

    async def run[T](
        self,
        work: Callable[[Transaction], T],
        *,
        timeout_s: float = TIMEOUT_S,
        lane: Lane = Lane.READS,
    ) -> T:
        """Runs a transaction on a thread of its kind, or on the event loop in memory. Only `READS` may not write.

        If the caller is cancelled or the time is over, the transaction never begins or its statement is interrupted. A
        commit is not interrupted, so writes must be idempotent.

        Raises:
          StoreUnavailableError: The database is unavailable, full, too slow or closed, or refuses the transaction for
            now.
          StoreOutdatedError: A newer server has upgraded the tables. No later transaction runs.
        """
        if self.outdated is not None:
            raise StoreOutdatedError(self.outdated)
        if not self.is_shared and not self._is_closed:  # in memory, it ends sooner than another thread would begin it
            self.prepare_now()
            return self._run(work, lane, Transaction(self._dialect))
        transaction = Transaction(self._dialect)
        try:
            async with asyncio.timeout(timeout_s):
                if not self._is_prepared:
                    await asyncio.shield(self._prepared())
                if self._is_closed:
                    raise WorkersClosedError
                return await self._pool.workers[lane].run(lambda: self._run(work, lane, transaction))
        except WorkersClosedError:
            raise StoreClosedError("the store's database was closed") from None
        except StoreOutdatedError as outdated:
            self._give_up(outdated)
            raise
        except StoreUnavailableError:
            self._probe_if_failing()
            raise
        except TimeoutError:
            error = StoreUnavailableError(f"the store's database has not responded within {timeout_s:g} s")
            if transaction.has_begun:
                self._note(error, lane)
                self._probe_if_failing()
            raise error from None
        finally:
            transaction.abandon()

    async def read[T](self, work: Callable[[Transaction], T]) -> T:
        """Reads for an open stream, again and again during a short outage of the database.

        Raises:
          StoreUnavailableError: The database was unavailable for too long, or is closed.
        """
        now = asyncio.get_running_loop().time
        give_up_at = now() + _OUTAGE_S
        while True:
            try:
                return await self.run(work)
            except StoreUnavailableError as error:
                if isinstance(error, StoreClosedError) or now() >= give_up_at:
                    raise
            await asyncio.sleep(_REPEAT_S)

    async def check(self) -> None:
        """Waits for the next probe if the database fails. Call it before work whose result a transaction will store.

        Raises:
          StoreUnavailableError: The database still fails.
        """
        self._probe_if_failing()
        if self._failing and self._probing is not None:
            await asyncio.wait([self._probing], timeout=_PATIENCE_S)
        if self.outdated is not None:
            raise StoreOutdatedError(self.outdated)
        for error in tuple(self._failing.values()):
            raise type(error)(str(error))

    def _probe_if_failing(self) -> None:
        if self._failing and self.probe is not None and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._probe(self.probe))

    async def _probe(self, probe: Callable[[Transaction], None]) -> None:
        """Repeats the probe until no kind of transactions fails. Kinds fail separately, see `_note`."""
        while self._failing:
            lane = next((each for each in self._failing if each is not Lane.READS), Lane.COMMITS)
            try:
                await self.run(probe, lane=lane)
            except StoreClosedError:
                return
            except StoreUnavailableError:
                await asyncio.sleep(PROBE_S)

    def prepare_now(self) -> None:
        """Creates and upgrades the tables on the current thread.

        Raises:
          StoreUnavailableError: The database is unavailable, or its tables cannot be created. The next transaction
            tries again.
        """
        if self._tables is not None and not self._is_prepared:
            self.run_now(partial(upgrade, tables=self._tables), writes=True)
            self._is_prepared = True

    def _prepared(self) -> asyncio.Task[None]:
        """Returns the task that creates the tables. A caller's timeout does not end it: an upgrade may take minutes."""
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.create_task(self._pool.workers[Lane.COMMITS].run(self.prepare_now))
            self._preparing.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # callers get the exception, too
        return self._preparing

    def run_now[T](self, work: Callable[[Transaction], T], *, writes: bool = False) -> T:
        """Runs a transaction on the current thread.

        Raises:
          StoreUnavailableError: The database is unavailable, full, too slow, or refuses the transaction for now.
        """
        return self._run(work, Lane.COMMITS if writes else Lane.READS, Transaction(self._dialect))

    def close(self) -> None:
        """Refuses new transactions. The pool's last user fails waiting ones, and closes connections not in use."""
        if not self._is_closed:
            self._is_closed = True
            self._pool.leave()

    def _run[T](self, work: Callable[[Transaction], T], lane: Lane, transaction: Transaction) -> T:
        """Runs a transaction, and notes whether the database can be used."""
        transaction.begin()
        self._running.add(transaction)
        try:
            result = self._transact(work, lane, transaction)
            self._note(None, lane if transaction.has_written else Lane.READS)
            return result
        except StoreOutdatedError:
            raise
        except StoreUnusableError as error:
            self._note(error, lane)
            raise
        except self._dialect.errors as error:
            transaction.check()
            unavailable = self._dialect.unavailable(error)
            if unavailable is None:
                raise
            self._pool.fail()
            self._note(unavailable, lane)
            raise unavailable from None
        finally:
            transaction.end()
            self._running.discard(transaction)

    def _transact[T](self, work: Callable[[Transaction], T], lane: Lane, transaction: Transaction) -> T:
        """Commits a transaction, and returns its result."""
        tables = self._tables if self._is_prepared and self.is_shared else None
        begin, fence = self._dialect.begin(writes=lane is not Lane.READS), [] if tables is None else [tables.fence]
        with self._pool.transaction(lane, *begin, *fence) as (connection, first):
            try:
                transaction.use(connection)
                if tables is not None:
                    tables.check_fence(first.fetchall())
                result = work(transaction)
            finally:
                transaction.end()  # a COMMIT that is interrupted while it waits for a standby is not undone
            transaction.check()
        return result

    def _give_up(self, error: StoreOutdatedError) -> None:
        """Stops using the database, and logs the reason once."""
        if self.outdated is None:
            self.outdated = str(error)
            _logger.error("%s; this server accepts no more work that needs them, and is not ready", error)

    def _note(self, error: StoreUnavailableError | None, lane: Lane) -> None:
        """Logs once when the database becomes unavailable, and once when it is available again.

        Lanes are tracked separately: a database that can be read may refuse writes, and one that grants leases may have
        no room for a commit.
        """
        if error is not None:
            if not self._failing:
                _logger.warning("%s", error)
            self._failing[lane] = error
        elif self._failing:
            for each in (Lane.READS, lane):
                self._failing.pop(each, None)
            if not self._failing:
                _logger.info("the store's database can be used again")


def open_database(address: StoreAddress, tables: Tables, pool: Pool | None = None) -> Database:
    """Returns a database whose tables exist in this version or a later one, or are created once it can be reached.

    One in memory is created when it is first used.

    Args:
      pool: Threads and connections to this address; None makes some for these tables alone.

    Raises:
      StoreUnavailableError: SQLite's file cannot be used.
      StoreUnusableError: PostgreSQL's administrator must change something first.
    """
    database = Database(dialect_of(address) if pool is None else pool, tables)
    if address.kind == "memory":
        return database
    try:
        database.prepare_now()
    except StoreUnavailableError as error:
        if address.kind == "sqlite" or isinstance(error, StoreUnusableError):
            database.close()
            raise type(error)(f"--store {address}: {error}") from None
        _warn_of_absence(str(address))
    if address.kind == "sqlite":
        _warn_of_access(address.target)
    return database


@cache
def _warn_of_absence(address: str) -> None:
    """Warns once for each database that is unavailable at the start."""
    text = "--store %s: serving without it; requests that need it get 503 until it can be used, and it is tried again"
    _logger.warning(text, address)


@cache
def _warn_of_access(path: str) -> None:
    """Warns once for each file that other users of the machine may read or write."""
    mode = os.stat(path).st_mode & 0o777
    if mode & _OTHERS:
        text = "--store: other users of the machine may use %s (mode %03o): chmod 600 it and its -wal and -shm"
        _logger.warning(text, path, mode)


def upgrade(transaction: Transaction, tables: Tables) -> None:
    """Upgrades tables to this code's version, unless they are newer. Call it in a transaction that writes.

    Raises:
      StoreOutdatedError: The tables exclude this code.
      StoreUnusableError: No upgrade leads on from the tables, or the database's role may not create or change tables.
    """
    dialect = transaction.dialect
    _run(transaction, dialect.lock_schema)
    try:
        found = _found(transaction, tables)
        if found is not None:
            version, oldest = found
            tables.check(version, oldest)
            if oldest < tables.upgrades[-1].oldest:
                _run(transaction, dialect.lock_fence)
        if found is None or found[0] < tables.version:
            _apply(transaction, tables, 0 if found is None else 1 + found[0] - tables.first)
    except dialect.denials as error:
        message = f"the database's role may not make or change the tables of {tables.feature}"
        reason = str(dialect.unavailable(error)).rpartition(": ")[2]
        fix = "it needs USAGE and CREATE on the schema, and must own the tables that are there"
        raise StoreUnusableError(f"{message} ({reason}): {fix}") from None


def _apply(transaction: Transaction, tables: Tables, num_done: int) -> None:
    """Runs the upgrades after the first `num_done`."""
    for step in tables.upgrades[num_done:]:
        _run(transaction, step.statements)
    put = """
        INSERT INTO roost_schemas (feature, version, oldest) VALUES (?, ?, ?)
        ON CONFLICT (feature) DO UPDATE SET version = excluded.version, oldest = excluded.oldest
    """
    transaction.execute(put, tables.feature, tables.version, tables.upgrades[-1].oldest)


def _run(transaction: Transaction, statements: Sequence[str]) -> None:
    for statement in statements:
        transaction.execute(statement)


def _found(transaction: Transaction, tables: Tables) -> tuple[int, int] | None:
    """Returns the version of a feature's tables, and the oldest version of the code that may use them; None if it has
    none.
    """
    if not transaction.rows("SELECT {has_table}", "roost_schemas")[0][0]:
        transaction.execute(
            "CREATE TABLE roost_schemas (feature TEXT PRIMARY KEY, version INTEGER NOT NULL, oldest INTEGER NOT NULL)"
        )
    return next(iter(transaction.rows(tables.fence)), None)
