"""Group commit: writes that come within a moment share one transaction, and so one wait for the disk."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .database import Database, Transaction
from .errors import FencedError, StoreUnavailableError

INTERVAL_S: Final = 0.05
"""Minimum seconds between the beginnings of two transactions."""

_RETRY_S: Final = 0.25
"""Seconds before a transaction is repeated that found the database away."""

_MAX_WRITES: Final = 256
"""Maximum number of writes in one transaction."""


type Work[T] = Callable[[Transaction], T]
"""A write. It may run several times, and must change nothing if it raises."""

type RunAll = Callable[[Transaction, Sequence[Work[Any]]], Sequence[Any]]
"""Runs the writes of a transaction, and returns the result of each, or the error with which it was refused."""


def run_each(transaction: Transaction, works: Sequence[Work[Any]]) -> list[Any]:
    """Runs writes one after the other."""
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
      work: The write itself.
      give_up_at: Time, on the event loop's clock, until which it is repeated while the database is away.
      done: Result.
      error: Error of the first attempt, which the caller gets if none succeeds. A later attempt may fail just because
        too little time is left.
    """

    work: Work[Any]
    give_up_at: float
    done: asyncio.Future[Any]
    error: StoreUnavailableError | None = None


class GroupCommit:
    """Commits writes together, in order of arrival, one transaction at a time.

    Args:
      database: Database to write to.
      interval_s: Minimum seconds between the beginnings of two transactions.
      run_all: Runs the writes of a transaction.
    """

    def __init__(self, database: Database, interval_s: float = INTERVAL_S, run_all: RunAll = run_each) -> None:
        self._database = database
        self._run_all = run_all
        self._interval_s = interval_s
        self._waiting: deque[_Write] = deque()
        self._task: asyncio.Task[None] | None = None
        self._last_start = -interval_s

    async def write[T](self, work: Work[T], timeout_s: float) -> T:
        """Runs a write in a shared transaction and returns its result once that has committed.

        Args:
          timeout_s: Seconds for which the write is repeated while the database is away. It may still be committed later
            if the database became slow in the middle of it.

        Raises:
          FencedError: The write was refused.
          StoreUnavailableError: The database was away, full or too slow for all that time.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Write(work, loop.time() + timeout_s, done))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await done

    async def _run(self) -> None:
        """Commits until nothing waits."""
        now = asyncio.get_running_loop().time
        while self._waiting:
            await asyncio.sleep(max(self._last_start + self._interval_s - now(), 0))
            self._last_start = now()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_WRITES))]
            await self._commit([write for write in batch if not write.done.done()])
        self._task = None

    async def _commit(self, batch: Sequence[_Write]) -> None:
        """Commits a batch, and puts it back if the database is away."""
        if not batch:
            return
        now = asyncio.get_running_loop().time
        timeout_s = max(min(write.give_up_at for write in batch) - now(), self._interval_s)
        try:
            works = [write.work for write in batch]
            results = await self._database.run(
                lambda each: self._run_all(each, works), writes=True, timeout_s=timeout_s
            )
        except StoreUnavailableError as error:
            self._retry(batch, error, now())
            await asyncio.sleep(_RETRY_S)
        except Exception as error:  # a bug in one of them must not fail the others
            await self._isolate(batch, error)
        else:
            for write, result in zip(batch, results, strict=True):
                _finish(write, result)

    def _retry(self, batch: Sequence[_Write], error: StoreUnavailableError, now: float) -> None:
        self._waiting.extendleft(write for write in reversed(batch) if write.give_up_at > now)
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
