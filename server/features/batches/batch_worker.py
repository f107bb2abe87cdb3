"""Runs lines of batches in free slots. Any number of replicas that share a database do so."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from starlette.types import ASGIApp

from ...database.errors import StoreUnavailableError
from ...generation.service import Service
from .batch_lines import max_line_bytes
from .batch_records import LineClaim, LineLease
from .batch_store import BatchStore
from .line_runner import LineRunner
from .open_lines import OpenLines
from .result_writer import ResultWriter

_PAUSE_S: Final = 0.25
"""Maximum seconds between two looks for lines, and seconds for which a line that this replica cannot run stays open."""

_RENEW_S: Final = 2.0
"""Seconds between two renewals of all leases. Leases last longer."""

_CLEAN_S: Final = 30.0
"""Seconds between two deletions of expired files and batches."""

_MAX_EXPIRED: Final = 200
"""Maximum number of lines of expired batches that end at a time."""

_logger: Final = logging.getLogger(__name__)


class BatchWorker:
    """Claims lines and runs them.

    The worker keeps twice as many lines open as there are slots for them, so that a freed slot immediately gets its
    next request. Results are stored in the background, many lines at a time, and their lines no longer count as open.
    Fewer lines are claimed while the open lines are large.

    A line whose owners have died runs alone: the worker stops claiming lines, waits until all other lines have ended,
    and then runs this line. Afterwards it runs other lines for the same time, before it claims the next such line.

    Args:
      service: Service that generates.
      app: Application with the service's routes, which trusts its caller.
      batches: Store of the batches.
      tenants: Number of tenants.
    """

    def __init__(self, service: Service, app: ASGIApp, batches: BatchStore, tenants: int = 1) -> None:
        self._service = service
        self._batches = batches
        self._runner = LineRunner(service, app)
        self._results = ResultWriter(batches)
        self._lines = OpenLines(max_line_bytes(service.admissions.max_body_bytes), is_shared=tenants > 1)
        self._open: dict[LineLease, asyncio.Task[None]] = {}
        self._lone: LineLease | None = None
        self._lone_since = self._next_lone_at = 0.0
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._renewed_at = 0.0

    def start(self) -> None:
        """Starts the worker's tasks. The engine must be ready."""
        self._tasks = tuple(map(asyncio.create_task, (self.run(), self._clean())))

    async def stop(self) -> None:
        """Gives all lines back, and stores the results of lines that have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _survive(self._give_back())
        await self._results.flush()

    async def run(self) -> None:
        """Runs lines until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._results.run())
            group.create_task(self._look_again())

    async def _look_again(self) -> None:
        has_work = self._batches.has_work
        while True:
            has_work.clear()
            await _survive(self.look())
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await has_work.wait()

    async def _clean(self) -> None:
        while True:
            await _survive(self._batches.look())
            await asyncio.sleep(_CLEAN_S)

    async def look(self) -> None:
        """Extends leases, ends lines that were cancelled, lost or have expired, and begins new lines."""
        if self._service.engine.error is not None:
            return  # a line may have ended the engine: the leases end, and count as this replica's death
        if self._batches.is_outdated:
            self._stop_lines()
            return
        is_barred = self._service.admissions.preemptible.is_barred
        if is_barred or self._service.open_requests.is_draining or not self._service.engine.is_ready:
            await self._give_back()
            return
        is_due = time.monotonic() - self._renewed_at >= _RENEW_S
        if is_due:
            await self._renew()
        if self._lone is None:
            await self._begin_lines(is_due=is_due)

    async def _begin_lines(self, *, is_due: bool) -> None:
        """Begins as many lines as there is room for.

        Args:
          is_due: Whether to end lines of expired batches, too.
        """
        if is_due and not await self._end_expired():
            self._batches.has_work.set()  # so that the next look comes immediately
            self._renewed_at = 0.0
        room = self._num_places()
        while (places := self._lines.wanted(room)).num_free:  # some at a time, since the lengths are unknown
            places = replace(places, takes_suspect=time.monotonic() >= self._next_lone_at)
            claims = await self._batches.claim(self._service.model.identity, places)
            for claim in claims:
                self._begin(claim)
            if len(claims) < places.num_free or self._lone is not None:
                return

    def _num_places(self) -> int:
        """Returns the number of lines to have open: 0 while other requests take all slots."""
        stats = self._service.engine.stats
        return 2 * max(stats.num_preemptible_slots - stats.num_waiting, 0)

    async def _renew(self) -> None:
        renewed = set(await self._batches.renew())
        self._renewed_at = time.monotonic()
        for lease in self._open.keys() - renewed:
            self._open[lease].cancel()
        unknown = [lease for lease in renewed - self._open.keys() if lease not in self._results]
        if unknown:  # a claim that was committed after its timeout
            await self._batches.release(unknown)

    async def _end_expired(self) -> bool:
        """Ends lines of expired batches, including models that no replica serves; returns whether these were all."""
        num_ended = 0
        while num_ended < _MAX_EXPIRED:
            limit = max(min(_MAX_EXPIRED - num_ended, self._lines.num_fitting), 1)
            claims = await self._batches.claim_expired(limit)
            results = await asyncio.gather(*map(self._runner.result, claims))
            ended = {claim.lease: result for claim, result in zip(claims, results, strict=True) if result is not None}
            if ended:
                await self._batches.end(ended)
            if len(claims) < limit:
                return True
            num_ended += limit
        return False

    async def _give_back(self) -> None:
        """Gives all lines back to other replicas, then stops them. The process may exit at any time, so giving back
        comes first.
        """
        stopped = {lease: task for lease, task in self._open.items() if not task.done()}
        if stopped:
            try:
                await self._batches.release(stopped)
            finally:
                for task in stopped.values():
                    task.cancel()
                await asyncio.wait(stopped.values())

    def _stop_lines(self) -> None:
        """Stops all lines without giving them back: other replicas take them when their leases end."""
        for task in self._open.values():
            task.cancel()

    def _begin(self, claim: LineClaim) -> None:
        task = asyncio.create_task(self._run_line(claim))
        self._open[claim.lease] = task
        self._lines.add(claim)
        if claim.runs_alone:
            self._lone, self._lone_since = claim.lease, time.monotonic()
        task.add_done_callback(lambda _: self._forget(claim))

    def _forget(self, claim: LineClaim) -> None:
        del self._open[claim.lease]
        self._lines.remove(claim)
        if claim.lease == self._lone:
            now = time.monotonic()
            self._lone, self._next_lone_at = None, now + (now - self._lone_since)
        self._batches.has_work.set()

    async def _run_line(self, claim: LineClaim) -> None:
        """Runs a line, and queues its result to be stored."""
        lease = claim.lease
        try:
            if not claim.runs_alone or await self._is_alone(lease):
                await self._end(claim)
        except StoreUnavailableError as error:
            _logger.warning("line %d of %s is left to other replicas: %s", lease.number, lease.batch, error)
        except Exception:
            _logger.exception("line %d of %s was not ended", lease.number, lease.batch)
            await _survive(self._batches.refuse([lease]))

    async def _is_alone(self, lease: LineLease) -> bool:
        """Waits until no other line is open; returns whether this replica still owns the line then."""
        while others := [task for each, task in self._open.items() if each != lease]:
            await asyncio.wait(others)
        await self._results.wait_empty()
        return await self._batches.mark_alone(lease)

    async def _end(self, claim: LineClaim) -> None:
        result = await self._runner.result(claim)
        if result is not None:
            self._results.add(claim.lease, result)
        elif self._service.engine.error is None:
            await asyncio.sleep(_PAUSE_S)
            await self._batches.refuse([claim.lease])


async def _survive(work: Awaitable[None]) -> None:
    """Awaits work that is repeated later in any case, and logs its failures."""
    try:
        await work
    except StoreUnavailableError as error:
        _logger.debug("%s", error)
    except Exception:
        _logger.exception("lines of batches were not claimed, or old ones not deleted")
