"""Group commit: concurrent writes share one transaction, and so wait for the disk only once."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..tenancy.tenant import tenant
from ..tenancy.turns import Turns
from .database import Database, Lane, Transaction
from .errors import FencedError, StoreClosedError, StoreFullError, StoreUnavailableError

INTERVAL_S: Final = 0.05
"""Minimum seconds between the beginnings of two transactions."""

_RETRY_S: Final = 0.25
"""Seconds before a transaction is repeated after the database was unavailable."""

_MAX_WRITES: Final = 256
"""Maximum number of writes in one transaction."""


type Work[T] = Callable[[Transaction], T]
"""A write. It may run several times, and must change nothing if it raises."""

type RunAll = Callable[[Transaction, Sequence[Work[Any]]], Sequence[Any]]
"""Runs the writes of a transaction, and returns the result of each, or the error with which it was refused."""


def run_each(transaction: Transaction, works: Sequence[Work[Any]]) -> list[Any]:
    """Runs writes in sequence."""
    results: list[Any] = []
    for work in works:
        try:
            results.append(work(transaction))
        except FencedError as error:
            results.append(error)
    return results


@dataclass(slots=True)
class _Write:
    """A write that waits for its commit.

    Attributes:
      owner: Tenant on whose behalf it runs.
      work: The write itself.
      give_up_at: Time, on the event loop's clock, until which it is repeated while the database is unavailable.
      waits_for_room: Whether it is repeated while the database is full, too.
      done: Result.
      error: Error of the first attempt, which the caller gets if none succeeds. A later attempt may fail only because
        too little time is left.
    """

    owner: str
    work: Work[Any]
    give_up_at: float
    waits_for_room: bool
    done: asyncio.Future[Any]
    error: StoreUnavailableError | None = None


class GroupCommit:
    """Commits writes together, one transaction at a time. Tenants take turns; a tenant's writes keep their order.

    Args:
      database: Database to write to.
      interval_s: Minimum seconds between the beginnings of two transactions.
      run_all: Runs the writes of a transaction.
      lane: Threads and connections that the transactions use.
    """

    def __init__(
        self,
        database: Database,
        interval_s: float = INTERVAL_S,
        run_all: RunAll = run_each,
        lane: Lane = Lane.COMMITS,
    ) -> None:
        self._database = database
        self._run_all = run_all
        self._interval_s = interval_s
        self._lane = lane
        self._waiting: Turns[_Write] = Turns()
        self._task: asyncio.Task[None] | None = None
        self._last_start = -interval_s

    async def write[T](self, work: Work[T], timeout_s: float, *, waits_for_room: bool = False) -> T:
        """Runs a write in a shared transaction, and returns its result after the commit.

        A write whose caller is cancelled before its transaction begins never runs.

        Args:
          timeout_s: Seconds for which the write is repeated while the database is unavailable. It may still be
            committed later if the database became slow in the middle of it.
          waits_for_room: Whether the write is repeated while the database is full, too. Otherwise it fails immediately.

        Raises:
          FencedError: The write was refused.
          StoreFullError: The database is full.
          StoreUnavailableError: The database was unavailable or too slow for all that time.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        owner = tenant.get()
        self._waiting.add(owner, _Write(owner, work, loop.time() + timeout_s, waits_for_room, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await done

    async def _run(self) -> None:
        """Commits until no write is waiting."""
        now = asyncio.get_running_loop().time
        while self._waiting:
            await asyncio.sleep(max(self._last_start + self._interval_s - now(), 0))
            self._last_start = now()
            await self._commit(self._next())
        self._task = None

    def _next(self) -> list[_Write]:
        """Removes and returns the writes of the next transaction."""
        batch: list[_Write] = []
        while len(batch) < _MAX_WRITES and (found := self._waiting.take()):
            _, write = found
            if not write.done.done():
                batch.append(write)
        return batch

    async def _commit(self, batch: Sequence[_Write]) -> None:
        """Commits a batch, and puts it back if the database is unavailable."""
        if not batch:
            return
        now = asyncio.get_running_loop().time
        timeout_s = max(min(write.give_up_at for write in batch) - now(), self._interval_s)
        try:
            results = await self._database.run(
                lambda each: self._run_batch(each, batch), timeout_s=timeout_s, lane=self._lane
            )
        except StoreClosedError as error:
            for write in batch:
                _finish(write, error)
        except StoreFullError as error:
            if len(batch) > 1 or not batch[0].waits_for_room:  # a smaller batch, such as a deletion, may have room
                await self._isolate(batch, error)
            else:
                self._retry(batch, error, now())
                await asyncio.sleep(_RETRY_S)
        except StoreUnavailableError as error:
            self._retry(batch, error, now())
            await asyncio.sleep(_RETRY_S)
        except Exception as error:  # a bug in one of them must not fail the others
            await self._isolate(batch, error)
        else:
            for write, result in results:
                _finish(write, result)

    def _run_batch(self, transaction: Transaction, batch: Sequence[_Write]) -> list[tuple[_Write, Any]]:
        """Runs the writes of a batch whose callers are still waiting, and returns each write with its result."""
        wanted = [write for write in batch if not write.done.cancelled()]
        if not wanted:
            return []
        return list(zip(wanted, self._run_all(transaction, [write.work for write in wanted]), strict=True))

    def _retry(self, batch: Sequence[_Write], error: StoreUnavailableError, now: float) -> None:
        for write in reversed(batch):
            if write.give_up_at > now:
                self._waiting.put_back(write.owner, write)
        for write in batch:
            write.error = write.error or error
            if write.give_up_at <= now:
                _finish(write, write.error)

    async def _isolate(self, batch: Sequence[_Write], error: Exception) -> None:
        if len(batch) == 1:
            _finish(batch[0], error)
            return
        for write in batch:
            await self._commit([write])


def _finish(write: _Write, result: Any) -> None:
    if write.done.done():
        return
    if isinstance(result, Exception):
        write.done.set_exception(result)
    else:
        write.done.set_result(result)
