"""Transactions on threads, with a time limit, so that an unavailable database does not block the event loop."""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from ..tenancy.workers import Workers, WorkersClosedError
from .connections import Call, Connections
from .dialects import STATEMENT_TIMEOUT_S, Connection, Cursor, Dialect
from .errors import StoreClosedError, StoreOutdatedError, StoreUnavailableError, StoreUnusableError
from .fence import Fence

TIMEOUT_S: Final = 2.0 * STATEMENT_TIMEOUT_S
"""Seconds after which a caller gets an error, even if the database does not respond."""

PROBE_S: Final = 1.0
"""Seconds between two probes of a database that fails."""

_PATIENCE_S: Final = 2 * PROBE_S
"""Seconds for which a request waits for a probe that succeeds."""

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


_NUM_READERS: Final = 3
"""Number of threads for reads."""


def placeholders(rows: int, columns: int) -> str:
    """Returns the placeholders of a statement's rows, such as `(?, ?), (?, ?)`."""
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


class Transaction:
    """One transaction. Its statements have `?` for values, and the dialect's words in braces."""

    def __init__(self, connection: Connection, dialect: Dialect, call: Call) -> None:
        self._connection = connection
        self._dialect = dialect
        self._call = call

    def execute(self, sql: str, *values: Any) -> Cursor:
        """Runs one statement."""
        self._call.check()
        return self._connection.execute(self._dialect.sql(sql), values)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Runs one statement and returns its rows."""
        return self.execute(sql, *values).fetchall()


def _workers(lane: Lane) -> Workers:
    """Returns the threads of a kind of transactions."""
    if lane is Lane.READS:  # the server itself also reads, and counts as a tenant
        return Workers(tenants=2, num_threads=_NUM_READERS, name="store-read")
    return Workers(num_threads=1, name=f"store-{lane.value}")


class Pool:
    """Threads and connections of a server, which its features share: as many as transactions run at a time.

    Args:
      dialect: Kind and address of the database.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.workers = {lane: _workers(lane) for lane in Lane}
        self.connections = {lane: Connections(dialect) for lane in Lane}
        self._num_users = 0

    def enter(self) -> None:
        """Adds a user."""
        self._num_users += 1

    def leave(self) -> None:
        """Removes a user. The last one closes all: waiting transactions fail."""
        self._num_users -= 1
        if not self._num_users:
            for lane in Lane:
                self.workers[lane].close()
                self.connections[lane].close()

    def fail(self) -> None:
        """Closes all idle connections."""
        for connections in self.connections.values():
            connections.fail()


class Database:
    """The tables of a feature in a database, or all tables of it.

    Args:
      pool: Shared threads and connections, or the dialect with which this object opens its own.
      prepare: Creates and upgrades tables before the first other transaction; None if they exist. It is repeated while
        the database is unavailable.
      name: Name of its tables for metrics and readiness.
      fence: Checked by each transaction once the tables exist; None uses tables of any version.

    Attributes:
      outdated: Why this server may no longer use the database; None while it may.
      probe: Transaction that writes to the feature's tables, and deletes what it wrote. While the database fails, it is
        repeated until it succeeds. None waits for the feature's transactions to succeed.
    """

    def __init__(
        self,
        pool: Pool | Dialect,
        prepare: Callable[[Transaction], None] | None = None,
        name: str = "store",
        fence: Fence | None = None,
    ) -> None:
        self.name = name
        self.outdated: str | None = None
        self.probe: Callable[[Transaction], None] | None = None
        self._fence = fence
        self._pool = pool if isinstance(pool, Pool) else Pool(pool)
        self._pool.enter()
        self._dialect = self._pool.dialect
        self._is_closed = False
        self._prepare = prepare
        self._preparing: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._running: set[Call] = set()
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
        return self._prepare is None and self.outdated is None and not self._failing

    async def run[T](
        self,
        work: Callable[[Transaction], T],
        *,
        timeout_s: float = TIMEOUT_S,
        lane: Lane = Lane.READS,
    ) -> T:
        """Runs a transaction on a thread of its kind. It may write in all kinds except `Lane.READS`.

        If the caller is cancelled or the time is over, the transaction never begins or its statement is interrupted. A
        commit is not interrupted, so writes must be idempotent.

        Raises:
          StoreUnavailableError: The database is unavailable, full, too slow or closed, or refuses the transaction for
            now.
          StoreOutdatedError: A newer server has upgraded the tables. No later transaction runs.
        """
        if self.outdated is not None:
            raise StoreOutdatedError(self.outdated)
        call = Call(self._dialect)
        try:
            async with asyncio.timeout(timeout_s):
                if self._prepare is not None:
                    await asyncio.shield(self._prepared())
                if self._is_closed:
                    raise WorkersClosedError
                return await self._pool.workers[lane].run(lambda: self._run(work, lane, call))
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
            if call.has_begun:
                self._note(error, lane)
                self._probe_if_failing()
            raise error from None
        finally:
            call.abandon()

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
        if self._prepare is not None:
            self.run_now(self._prepare, writes=True)
            self._prepare = None

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
        return self._run(work, Lane.COMMITS if writes else Lane.READS, Call(self._dialect))

    def close(self) -> None:
        """Refuses new transactions. The pool's last user fails waiting ones, and closes connections not in use."""
        if not self._is_closed:
            self._is_closed = True
            self._pool.leave()

    def _run[T](self, work: Callable[[Transaction], T], lane: Lane, call: Call) -> T:
        """Runs a transaction for a call."""
        call.begin()
        self._running.add(call)
        try:
            result = self._transact(work, lane, call)
            self._note(None, lane)
            return result
        except StoreOutdatedError:
            raise
        except StoreUnusableError as error:
            self._note(error, lane)
            raise
        except self._dialect.errors as error:
            call.check()
            unavailable = self._dialect.unavailable(error)
            if unavailable is None:
                raise
            self._pool.fail()
            self._note(unavailable, lane)
            raise unavailable from None
        finally:
            call.end()
            self._running.discard(call)

    def _transact[T](self, work: Callable[[Transaction], T], lane: Lane, call: Call) -> T:
        connections = self._pool.connections[lane]
        num_errors = connections.num_errors
        begin = self._dialect.begin(writes=lane is not Lane.READS)
        fence = self._fence if self._prepare is None else None
        connection, first = connections.begin(*begin, *(() if fence is None else (fence.query,)))
        try:
            call.use(connection)
            if fence is not None:
                fence.check(first.fetchall())
            result = work(Transaction(connection, self._dialect, call))
            call.end()  # a COMMIT that is interrupted while it waits for a standby is not undone
            call.check()
            connection.execute("COMMIT")
        except BaseException:
            call.end()
            connections.drop(connection)
            raise
        connections.put_back(connection, num_errors)
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
