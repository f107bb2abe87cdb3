"""The loop of a replica that claims work, renews its leases, and runs suspects alone."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable
from uuid import uuid4

from ..database.database import Database, Lane, Transaction
from ..database.errors import FencedError, StoreOutdatedError, StoreUnavailableError
from ..database.group_commit import GroupCommit
from .claims import Places
from .work import Claim, Lease, WorkTable

RENEW_S: Final = 2.0
"""Seconds between two renewals of all leases. Leases last longer."""

_INTERVAL_S: Final = 0.01
"""Minimum seconds between the beginnings of two transactions on leases."""

_CLEAN_S: Final = 30.0
"""Seconds between two deletions of old work."""

_WRITE_S: Final = 5.0
"""Seconds for which a write is repeated while the database is unavailable."""

_LAST_S: Final = 1.0
"""Seconds for writes of a replica that may be shutting down."""

_logger: Final = logging.getLogger(__name__)


class Leases:
    """Leases of this replica on work of a kind. They never wait for commits of results.

    A lease is renewed until its task has ended for any reason. A lease in the database without a task is given back.

    Args:
      database: Database with the table.
      table: Table of the work.

    Attributes:
      owner: Name of the replica.
      num_strays: Number of leases without a task at the last renewal.
      num_refusals: Total units that this replica gave back because it could not run them.
    """

    def __init__(self, database: Database, table: WorkTable) -> None:
        self.owner = uuid4().hex
        self.num_strays = self.num_refusals = 0
        self._table = table
        self._commits = GroupCommit(database, _INTERVAL_S, lane=Lane.LEASES)
        self._holders: dict[Lease, asyncio.Future[Any]] = {}
        self._taken: set[tuple[str, str]] = set()

    @property
    def held(self) -> Collection[Lease]:
        """Leases that tasks of this replica hold."""
        return self._holders.keys()

    def hold(self, lease: Lease, holder: asyncio.Future[Any]) -> None:
        """Renews a lease until a task has ended. A later task replaces an earlier one, whose end then has no effect."""
        self._holders[lease] = holder
        holder.add_done_callback(lambda ended: self.drop(lease) if self._holders.get(lease) is ended else None)

    def drop(self, lease: Lease) -> None:
        """Renews a lease no longer."""
        self._holders.pop(lease, None)

    @contextmanager
    def taking(self, tenant: str, id: str) -> Iterator[None]:
        """Keeps `renew` from giving back a lease that a write has stored but no task holds yet."""
        self._taken.add((tenant, id))
        try:
            yield
        finally:
            self._taken.discard((tenant, id))

    async def write[T](self, work: Callable[[Transaction], T], timeout_s: float = _WRITE_S) -> T:
        """Runs a transaction on leases."""
        return await self._commits.write(work, timeout_s)

    async def renew(self) -> Sequence[Lease]:
        """Extends all leases that tasks hold, and gives the others back.

        Returns:
          Leases that tasks of this replica hold, but that it no longer owns.
        """
        before = set(self._holders)
        owned = set(await self.write(partial(self._table.renew, owner=self.owner, leases=before)))
        known = before | set(self._holders)  # a task may begin or end during the write
        strays = {lease for lease in owned - known if (lease.tenant, lease.id) not in self._taken}
        self.num_strays = len(strays)
        if strays:  # such as a claim that was committed after its timeout
            await self.release(strays)
        return [lease for lease in before - owned if lease in self._holders]

    async def release(self, leases: Collection[Lease], *, is_death: bool = False) -> None:
        """Gives units back to other replicas; see `WorkTable.release`."""
        await self.write(partial(self._table.release, leases=leases, is_death=is_death), _LAST_S)

    async def refuse(self, leases: Collection[Lease]) -> None:
        """Gives units back that this replica could not run now. Other replicas may claim them after a pause."""
        self.num_refusals += len(leases)
        await self.write(partial(self._table.refuse, leases=leases), _LAST_S)

    async def set_alone(self, lease: Lease, *, is_alone: bool) -> bool:
        """Records whether this replica runs only this unit; returns whether it still owns the unit."""
        return await self.write(partial(self._table.set_alone, lease=lease, is_alone=is_alone))


@runtime_checkable
class Claimed(Protocol):
    """A claimed unit with the data needed to run it."""

    @property
    def claim(self) -> Claim:
        """The unit."""


@runtime_checkable
class WorkKind[C: Claimed](Protocol):
    """A kind of work, as the loop knows it.

    Attributes:
      pause_s: Maximum seconds between two looks for work.
      others_s: Seconds for which a suspect waits for other units to end. After that it runs together with them.
    """

    pause_s: float = RENEW_S
    others_s: float | None = None

    @property
    def gives_way(self) -> bool:
        """Whether all units must be given back now."""
        return False

    def places(self, running: Collection[C]) -> Places:
        """Returns the room for more units.

        Args:
          running: Units that run now.
        """

    async def claim(self, places: Places) -> Sequence[C]:
        """Claims units, as many as there are places."""

    async def run(self, claim: C) -> Callable[[], Awaitable[Any]] | None:
        """Runs a unit, and returns the rest of its work, if any.

        During the rest the unit keeps its lease, but does not occupy a place, and is not given back.
        """

    def name_of(self, lease: Lease) -> str:
        """Returns the name of a unit in the log."""
        return lease.id

    def stop(self, lease: Lease, task: asyncio.Task[None] | None) -> None:
        """Stops a unit that another replica owns or that has ended.

        Args:
          task: Task of the worker that runs the unit; None if another one holds its lease.
        """
        if task is not None:
            task.cancel()

    def bar_others(self) -> AbstractAsyncContextManager[None]:
        """Returns a context in which this replica does not run other kinds of work together with a suspect."""
        return nullcontext()

    def alone_s(self, claim: C) -> float | None:
        """Returns the seconds after which others may join a suspect that runs alone; None means never."""
        return None

    async def look(self, running: Collection[C]) -> bool:
        """Does the work that is due after each renewal; returns whether units may be claimed now."""
        return True

    async def clean(self) -> None:
        """Deletes old data."""


class Worker[C: Claimed]:
    """Claims and runs work of a kind.

    A suspect runs alone: the worker claims nothing else, waits until all other units have ended, and then runs the
    suspect. Afterwards it prefers other units for the same time.

    Args:
      kind: Kind of work.
      leases: Leases of this replica on such work.
      has_work: Event that makes the worker look for work.
    """

    def __init__(self, kind: WorkKind[C], leases: Leases, has_work: asyncio.Event | None = None) -> None:
        self._kind = kind
        self._leases = leases
        self._has_work = has_work or asyncio.Event()
        self._open: dict[Lease, asyncio.Task[None]] = {}
        self._running: dict[Lease, C] = {}
        self._lone: Lease | None = None
        self._lone_since = self._next_lone_at = 0.0
        self._renewed_at = 0.0
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    def start(self) -> None:
        """Starts the worker's tasks."""
        self._tasks = tuple(map(asyncio.create_task, (self.run(), self._clean_again())))

    async def stop(self) -> None:
        """Gives all units back, and waits until the results of others are stored."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _survive(self.give_back())
        await asyncio.gather(*self._open.values(), return_exceptions=True)

    async def run(self) -> None:
        """Claims work until it is cancelled."""
        while True:
            self._has_work.clear()
            await _survive(self.look(renews=time.monotonic() - self._renewed_at >= RENEW_S))
            until_renewal_s = self._renewed_at + RENEW_S - time.monotonic()
            pause_s = self._kind.pause_s if until_renewal_s <= 0 else min(self._kind.pause_s, until_renewal_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._has_work.wait()

    async def _clean_again(self) -> None:
        while True:
            await _survive(self._kind.clean())
            await asyncio.sleep(_CLEAN_S)

    async def look(self, *, renews: bool = True) -> None:
        """Renews leases, stops units that were lost, and begins new units."""
        if self._kind.gives_way:
            await self.give_back()
            return
        if renews:
            await self._renew()
            if not await self._kind.look(self._running.values()):
                self._has_work.set()
                return
        while self._lone is None and (places := self._kind.places(self._running.values())).num_free > 0:
            places = replace(places, prefers_suspect=time.monotonic() >= self._next_lone_at)
            claims = await self._kind.claim(places)
            for claim in claims:
                self._begin(claim)
            if len(claims) < places.num_free:
                return

    async def _renew(self) -> None:
        try:
            lost = await self._leases.renew()
        except StoreOutdatedError:
            for task in self._open.values():
                task.cancel()
            raise
        self._renewed_at = time.monotonic()
        for lease in lost:
            self._kind.stop(lease, self._open[lease] if lease in self._running else None)

    async def give_back(self) -> None:
        """Gives running units back to other replicas, then stops them. The process may exit at any time, so giving back
        comes first.
        """
        stopped = {lease: self._open[lease] for lease in self._running}
        if stopped:
            try:
                await self._leases.release(stopped)
            finally:
                for task in stopped.values():
                    task.cancel()
                await asyncio.wait(stopped.values())

    def _begin(self, claim: C) -> None:
        lease = claim.claim.lease
        if claim.claim.is_suspect:
            self._lone, self._lone_since = lease, time.monotonic()
        task = self._open[lease] = asyncio.create_task(self._run_safely(claim))
        self._running[lease] = claim
        self._leases.hold(lease, task)
        task.add_done_callback(lambda _: self._forget(lease))

    def _forget(self, lease: Lease) -> None:
        self._running.pop(lease, None)
        del self._open[lease]
        self._end_alone(lease)
        self._has_work.set()

    def _end_alone(self, lease: Lease) -> None:
        if self._lone == lease:
            now = time.monotonic()
            self._lone, self._next_lone_at = None, now + (now - self._lone_since)

    async def _run_safely(self, claim: C) -> None:
        lease = claim.claim.lease
        try:
            await (self._run_alone(claim) if claim.claim.is_suspect else self._run(claim))
        except (FencedError, StoreUnavailableError) as error:
            _logger.warning("%s is left to other replicas: %s", self._kind.name_of(lease), error)
        except Exception:
            _logger.exception("%s was not ended", self._kind.name_of(lease))
            await _survive(self._leases.refuse([lease]))

    async def _run(self, claim: C) -> None:
        rest = await self._kind.run(claim)
        if rest is not None:
            self._running.pop(claim.claim.lease, None)
            self._has_work.set()
            await rest()

    async def _run_alone(self, claim: C) -> None:
        """Runs a suspect, without other units if they end in time."""
        lease = claim.claim.lease
        _logger.info("%s has lost %d owners: it runs alone", self._kind.name_of(lease), claim.claim.num_deaths)
        async with AsyncExitStack() as bars:
            await bars.enter_async_context(self._kind.bar_others())
            if others := self._others(lease):
                await asyncio.wait(others, timeout=self._kind.others_s)
            if self._others(lease):
                self._end_alone(lease)
                await bars.aclose()
                await self._run(claim)
            elif await self._leases.set_alone(lease, is_alone=True):
                watch = asyncio.create_task(self._let_others_join(lease, self._kind.alone_s(claim), bars))
                try:
                    await self._run(claim)
                finally:
                    watch.cancel()

    def _others(self, lease: Lease) -> Collection[asyncio.Task[None]]:
        return [task for each, task in self._open.items() if each != lease]

    async def _let_others_join(self, lease: Lease, alone_s: float | None, bars: AsyncExitStack) -> None:
        """Ends the time for which a suspect runs alone, unless that cannot be recorded."""
        if alone_s is None:
            return
        await asyncio.sleep(alone_s)
        with suppress(StoreUnavailableError):
            await self._leases.set_alone(lease, is_alone=False)
            self._end_alone(lease)
            await bars.aclose()


async def _survive(work: Awaitable[None]) -> None:
    """Awaits work that is repeated later in any case, and logs its failures."""
    try:
        await work
    except StoreUnavailableError as error:
        _logger.debug("%s", error)
    except Exception:
        _logger.exception("work was not claimed, or old work not deleted")
