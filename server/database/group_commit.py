"""Group commit: concurrent writes share one transaction, and so wait for the disk only once.

A transaction has a budget of rows and bytes, of which each tenant has a share, and tenants take turns. A larger write
has a transaction to itself, and small writes go before the next such write. So a small write waits for the transaction
that runs, and then for its own.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ..tenants import Turns, tenant
from .database import Database, Lane, Transaction
from .errors import RefusedError, StoreClosedError, StoreFullError, StoreUnavailableError, WriteTooLargeError

INTERVAL_S: Final = 0.05
"""Minimum seconds between the beginnings of two transactions."""

_RETRY_S: Final = 0.25
"""Seconds before a transaction is repeated after the database was unavailable."""

_MIN_ATTEMPT_S: Final = 2.0
"""Minimum seconds of a transaction, even if a write of it has less time left."""

_MAX_WRITES: Final = 256
"""Maximum number of writes in one transaction."""


class WriteLoad(NamedTuple):
    """Rows that writes add or change, and bytes that they add."""

    num_rows: int = 0
    num_bytes: int = 0

    def plus(self, other: "WriteLoad") -> "WriteLoad":
        """Returns the load of both together."""
        return WriteLoad(self.num_rows + other.num_rows, self.num_bytes + other.num_bytes)

    def fits(self, most: "WriteLoad") -> bool:
        """Returns whether neither number exceeds its maximum."""
        return self.num_rows <= most.num_rows and self.num_bytes <= most.num_bytes


ONE_ROW: Final = WriteLoad(1)

MAX_WRITE: Final = WriteLoad(2048, 64 * 2**20)
"""Maximum load of one write."""

MAX_COMMIT: Final = WriteLoad(1024, 4 * 2**20)
"""Maximum load of a transaction of several writes."""

MAX_SHARE: Final = WriteLoad(256, 2**20)
"""Maximum load of each tenant in a transaction of several writes. A larger write has a transaction to itself."""


type Work[T] = Callable[[Transaction], T]
"""A write. It may run several times. Changes before a `RefusedError` that it raises are committed."""

type RunAll = Callable[[Transaction, Sequence[Work[Any]]], Sequence[Any]]
"""Runs the writes of a transaction, and returns the result of each, or the error with which it was refused."""


def run_each(transaction: Transaction, works: Sequence[Work[Any]]) -> list[Any]:
    """Runs writes in sequence."""
    results: list[Any] = []
    for work in works:
        try:
            results.append(work(transaction))
        except RefusedError as error:
            results.append(error)
    return results


@dataclass(slots=True)
class _Write:
    """A write that waits for its commit.

    Attributes:
      owner: Tenant on whose behalf it runs.
      work: The write itself.
      load: Its rows and bytes.
      give_up_at: Time, on the event loop's clock, until which it is repeated while the database is unavailable.
      waits_for_room: Whether it is repeated while the database is full, too.
      done: Result.
      error: Error of the first attempt, which the caller gets if none succeeds. A later attempt may fail only because
        too little time is left. After an error, the write shares transactions with its tenant's writes only.
    """

    owner: str
    work: Work[Any]
    load: WriteLoad
    give_up_at: float
    waits_for_room: bool
    done: asyncio.Future[Any]
    error: StoreUnavailableError | None = None


class GroupCommit:
    """Commits writes together, one transaction at a time. Tenants take turns; a tenant's writes keep their order.

    In memory, each write is committed immediately: a commit there takes less than to wait for others.

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
        self._was_large = False

    async def write[T](
        self,
        work: Work[T],
        timeout_s: float,
        load: WriteLoad = ONE_ROW,
        *,
        waits_for_room: bool = False,
        owner: str | None = None,
    ) -> T:
        """Runs a write in a shared transaction, and returns its result after the commit.

        A write whose caller is cancelled before its transaction begins never runs.

        Args:
          timeout_s: Seconds for which the write is repeated while the database is unavailable. It may still be
            committed later if the database became slow in the middle of it.
          load: Its rows and bytes.
          waits_for_room: Whether the write is repeated while the database is full, too. Otherwise it fails immediately.
          owner: Tenant on whose behalf it runs; None is the current one.

        Raises:
          WriteTooLargeError: The load exceeds `MAX_WRITE`.
          FencedError: The write was refused.
          StoreFullError: The database is full.
          StoreUnavailableError: The database was unavailable or too slow for all that time.
        """
        if not load.fits(MAX_WRITE):
            size = f"{load.num_rows:,} rows and {load.num_bytes:,} bytes"
            most = f"{MAX_WRITE.num_rows:,} and {MAX_WRITE.num_bytes:,}"
            raise WriteTooLargeError(
                f"what is to be stored at once has {size}, and may have {most}: send or store less"
            )
        if not self._database.is_shared:
            (result,) = await self._database.run(lambda each: self._run_all(each, [work]), lane=self._lane)
            if isinstance(result, Exception):
                raise result
            return result
        loop, owner = asyncio.get_running_loop(), tenant.get() if owner is None else owner
        write = _Write(owner, work, load, loop.time() + timeout_s, waits_for_room, loop.create_future())
        self._waiting.add(owner, write)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(timeout_s):
                return await write.done
        except TimeoutError:
            late = StoreUnavailableError(f"the store's database has not committed a write within {timeout_s:g} s")
            raise write.error or late from None

    async def _run(self) -> None:
        """Commits until no write is waiting."""
        now = asyncio.get_running_loop().time
        while self._waiting:
            await asyncio.sleep(max(self._last_start + self._interval_s - now(), 0))
            self._last_start = now()
            await self._commit(self._next())
        self._task = None

    def _next(self) -> list[_Write]:
        """Removes and returns the writes of the next transaction.

        Small writes go before a second large one. They are sorted by tenant, so that transactions of several replicas
        lock rows in the same order.
        """
        batch = self._taken(takes_large=not self._was_large) or self._taken(takes_large=True)
        self._was_large = bool(batch) and not batch[0].load.fits(MAX_SHARE)
        return sorted(batch, key=lambda write: write.owner)

    def _taken(self, *, takes_large: bool) -> list[_Write]:
        """Removes and returns writes that fit in a transaction.

        Args:
          takes_large: Whether a write that exceeds its tenant's share may be the only one.
        """
        batch: list[_Write] = []
        loads: dict[str, WriteLoad] = defaultdict(WriteLoad)
        total = WriteLoad()

        def may_go(owner: str, write: _Write) -> bool:
            if write.done.done() or (takes_large and not batch):
                return True
            if batch and owner != batch[0].owner and (write.error or batch[0].error):
                return False
            return total.plus(write.load).fits(MAX_COMMIT) and loads[owner].plus(write.load).fits(MAX_SHARE)

        while len(batch) < _MAX_WRITES and (found := self._waiting.take(may_go)) is not None:
            owner, write = found
            if not write.done.done():
                batch.append(write)
                total, loads[owner] = total.plus(write.load), loads[owner].plus(write.load)
        return batch

    async def _commit(self, batch: Sequence[_Write]) -> None:
        """Commits a batch, and puts it back if the database is unavailable."""
        if not batch:
            return
        left_s = min(write.give_up_at for write in batch) - asyncio.get_running_loop().time()
        if self._waiting or any(write.owner != batch[0].owner for write in batch):
            left_s /= 2  # so that others have time left if this one takes too long
        timeout_s = max(left_s, _MIN_ATTEMPT_S)
        try:
            results = await self._database.run(
                lambda each: self._run_batch(each, batch), timeout_s=timeout_s, lane=self._lane
            )
        except StoreUnavailableError as error:
            if isinstance(error, StoreClosedError) or (
                isinstance(error, StoreFullError) and not (len(batch) == 1 and batch[0].waits_for_room)
            ):
                await self._isolate(batch, error)  # a smaller batch, such as a deletion, may have room
            else:
                for write in reversed(batch):
                    write.error = write.error or error
                    self._waiting.put_back(write.owner, write)
                await asyncio.sleep(_RETRY_S)
        except Exception as error:  # a bug in one of them must not fail the others
            await self._isolate(batch, error)
        else:
            for write, result in results:
                _finish(write, result)

    def _run_batch(self, transaction: Transaction, batch: Sequence[_Write]) -> list[tuple[_Write, Any]]:
        """Runs the writes of a batch whose callers are still waiting, and returns each write with its result."""
        wanted = [write for write in batch if not write.done.done()]
        if not wanted:
            return []
        return list(zip(wanted, self._run_all(transaction, [write.work for write in wanted]), strict=True))

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
