"""Runs lines of batches in free slots; any number of replicas that share a database do so."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final

from starlette.types import ASGIApp

from ...database.errors import StoreUnavailableError
from ...generation.service import Service
from ...http.in_process import post_json
from ...http.json_limits import LONG_BYTES
from ...http.request_body import MAX_BODY_BYTES, MAX_KEPT_BYTES, kept_budget
from ...tenancy.byte_gate import ByteGate
from ...tenancy.tenant import tenant
from .batch_lines import (
    BatchLine,
    LineError,
    error_line,
    leading_custom_id,
    line_id,
    max_line_bytes,
    parse_measured,
    response_line,
)
from .batch_records import LineClaim, LineLease, LineResult
from .batch_store import BatchStore

_PAUSE_S: Final = 0.25
"""Maximum seconds between two looks for lines."""

_RENEW_S: Final = 2.0
"""Seconds between two renewals of all leases, which last longer."""

_CLEAN_S: Final = 30.0
"""Seconds between two deletions of what is too old."""

_MAX_EXPIRED: Final = 200
"""Maximum number of lines of expired batches that end at a time."""

_STORE_S: Final = 0.05
"""Minimum seconds between two transactions that store results."""

_MAX_STORED: Final = 256
"""Maximum number of lines whose results are stored in one transaction."""

_SHARE_CLAIMED: Final = 8
"""Share of the room for lines that has to be free, as its reciprocal, before more are claimed: each claim takes several
statements, however many lines it brings."""

_MAX_LONGEST: Final = 32
"""Number of lines of the maximum size that may be open. More are open if they are shorter."""

_SHARE_PARSED: Final = 2
"""Share of the memory of requests that parsed bodies of lines may take, as its reciprocal. The rest is for their
prompts."""

_MAX_CLAIMS: Final = 5
"""Number of replicas that claim a line without ending it, after which it fails: it may be what ends them."""

_BUSY: Final = frozenset({429, 503})
"""Statuses that are this replica's, so that a line is left to others."""

_logger: Final = logging.getLogger(__name__)


class BatchWorker:
    """Claims lines and sends them to this replica's own application, without a socket or a key.

    It has twice as many lines open as there are slots for them, so that a slot that becomes free has its next request.
    What lines have ended with is stored meanwhile, many lines at a time, and takes none of their places.

    Long lines are parsed on worker threads. Lines wait while the parsed bodies of others leave no memory for theirs,
    and fewer are claimed while those that are open are large.

    Args:
      service: Service that generates.
      app: Application with the service's routes, which trusts its caller.
      batches: Store of the batches.
      max_body_bytes: Maximum bytes of a body that the application takes.
      max_kept_bytes: Maximum bytes that the application's requests hold together.
    """

    def __init__(
        self,
        service: Service,
        app: ASGIApp,
        batches: BatchStore,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_kept_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self._service = service
        self._app = app
        self._batches = batches
        self._max_body_bytes = max_body_bytes
        self._parsed_bytes = ByteGate(kept_budget(max_body_bytes, max_kept_bytes) // _SHARE_PARSED)
        self._open: dict[LineLease, asyncio.Task[None]] = {}
        self._num_bytes = 0  # of open lines
        self._results: dict[LineLease, LineResult] = {}  # not stored yet
        self._has_results = asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._renewed_at = 0.0

    def start(self) -> None:
        """Begins, once the engine is ready."""
        self._tasks = tuple(map(asyncio.create_task, (self.run(), self._clean())))

    async def run(self) -> None:
        """Runs lines until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._store_results())
            group.create_task(self._look_again())

    async def _look_again(self) -> None:
        has_work = self._batches.has_work
        while True:
            has_work.clear()
            await _survive(self.look())
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await has_work.wait()

    async def _store_results(self) -> None:
        while True:
            await self._has_results.wait()
            self._has_results.clear()
            while some := dict(islice(self._results.items(), _MAX_STORED)):
                await self._store(some)
                for lease in some:
                    del self._results[lease]
            await asyncio.sleep(_STORE_S)

    async def _store(self, results: Mapping[LineLease, LineResult]) -> None:
        try:
            await self._batches.end(results)
        except StoreUnavailableError as error:
            _logger.warning("%d lines of batches are left to other replicas: %s", len(results), error)
        except Exception:
            _logger.exception("%d lines of batches were not ended", len(results))

    async def _clean(self) -> None:
        while True:
            await _survive(self._batches.look())
            await asyncio.sleep(_CLEAN_S)

    async def look(self) -> None:
        """Extends leases, ends lines that were cancelled, lost or have expired, and begins new ones."""
        if self._service.open_requests.is_draining or not self._service.engine.is_ready:
            await self._give_back()
            return
        now = time.monotonic()
        is_due = now - self._renewed_at >= _RENEW_S
        if is_due:
            await self._renew()
            if await self._end_expired():
                self._renewed_at = now
            else:
                self._batches.has_work.set()  # so that the next look comes at once
        wanted, room = self._num_wanted()
        if wanted >= max(room // _SHARE_CLAIMED, 1):
            await self._claim(wanted)

    def _num_wanted(self) -> tuple[int, int]:
        """Returns how many more lines to claim, and how many to have: none where other requests leave no slot."""
        stats = self._service.engine.stats
        room = 2 * max(stats.num_preemptible_slots - stats.num_waiting, 0)
        return room - len(self._open), room

    def _num_fitting(self) -> int:
        """Returns how many more lines have room in memory if all are of the maximum size."""
        longest = max_line_bytes(self._max_body_bytes)
        return max(_MAX_LONGEST * longest - self._num_bytes, 0) // longest

    async def _claim(self, wanted: int) -> None:
        """Claims and begins lines, some at a time, since their lengths are unknown."""
        while limit := min(wanted, self._num_fitting()):
            claims = await self._batches.claim(self._service.model.identity, limit)
            for claim in claims:
                self._begin(claim)
            if len(claims) < limit:
                return
            wanted -= limit

    async def _renew(self) -> None:
        renewed = set(await self._batches.renew())
        for lease in self._open.keys() - renewed:
            self._open[lease].cancel()
        if (
            unknown := renewed - self._open.keys() - self._results.keys()
        ):  # a claim that was committed after its timeout
            await self._batches.release(unknown)

    async def _end_expired(self) -> bool:
        """Ends lines of expired batches, also of models that no replica serves; returns whether that were all."""
        num_ended = 0
        while num_ended < _MAX_EXPIRED:
            limit = max(min(_MAX_EXPIRED - num_ended, self._num_fitting()), 1)
            claims = await self._batches.claim(None, limit)
            results = await asyncio.gather(*map(self._result, claims))
            ended = {claim.lease: result for claim, result in zip(claims, results, strict=True) if result is not None}
            if ended:
                await self._batches.end(ended)
            if len(claims) < limit:
                return True
            num_ended += limit
        return False

    async def _give_back(self) -> None:
        """Stops all lines and leaves them to other replicas."""
        stopped = {lease: task for lease, task in self._open.items() if not task.done()}
        if stopped:
            for task in stopped.values():
                task.cancel()
            await asyncio.wait(stopped.values())
            await self._batches.release(stopped.keys() - self._results.keys())

    def _begin(self, claim: LineClaim) -> None:
        task = asyncio.create_task(self._run_line(claim))
        self._open[claim.lease] = task
        self._num_bytes += len(claim.data)
        task.add_done_callback(lambda _: self._forget(claim))

    def _forget(self, claim: LineClaim) -> None:
        del self._open[claim.lease]
        self._num_bytes -= len(claim.data)
        self._batches.has_work.set()

    async def _run_line(self, claim: LineClaim) -> None:
        """Runs a line. What it has ended with is stored later."""
        lease = claim.lease
        try:
            if (result := await self._result(claim)) is None:
                await asyncio.sleep(_PAUSE_S)
                await self._batches.release([lease])
            else:
                self._results[lease] = result
                self._has_results.set()
        except StoreUnavailableError as error:
            _logger.warning("line %d of %s is left to other replicas: %s", lease.number, lease.batch, error)
        except Exception:
            _logger.exception("line %d of %s was not ended", lease.number, lease.batch)

    async def _result(self, claim: LineClaim) -> LineResult | None:
        """Returns what a line has ended with; None if this replica cannot run it now."""
        lease = claim.lease
        id = line_id(lease.number, lease.batch.removeprefix("batch_"))
        if claim.num_claims > _MAX_CLAIMS:  # parsing may be what ends replicas
            message = f"{claim.num_claims - 1} replicas began this line and did not end it"
            written = error_line(id, leading_custom_id(claim.data), "server_error", message)
            return LineResult(written, is_failed=True)
        try:
            line, num_bytes = await self._parsed(claim)
        except LineError as error:  # of a file that another version, or a replica with other settings, has checked
            return LineResult(error_line(id, error.custom_id, "invalid_line", str(error)), is_failed=True)
        if claim.is_expired:
            is_served = claim.model == self._service.model.identity
            message = "the batch expired before " + (
                "this line ran" if is_served else "a server with its model ran this line"
            )
            return LineResult(error_line(id, line.custom_id, "batch_expired", message), is_failed=True)
        async with self._parsed_bytes.hold(num_bytes):
            response = await post_json(self._app, line.url, line.body, lease.tenant)
        if response.status in _BUSY:
            return None
        request_id = response.headers.get("x-request-id", "")
        written = response_line(id, line.custom_id, response.status, request_id, response.body)
        return LineResult(written, is_failed=response.status != 200)

    async def _parsed(self, claim: LineClaim) -> tuple[BatchLine, int]:
        """Returns the request of a line, and the bytes of its parsed body.

        Raises:
          LineError: The line is not a request.
        """
        parse = partial(parse_measured, claim.data, claim.lease.number, self._max_body_bytes)
        if len(claim.data) < LONG_BYTES:
            return parse()
        tenant.set(claim.lease.tenant)
        return await self._service.workers.run(parse)


async def _survive(work: Awaitable[None]) -> None:
    """Awaits work that is repeated anyway, and logs its failures."""
    try:
        await work
    except StoreUnavailableError as error:
        _logger.debug("%s", error)
    except Exception:
        _logger.exception("lines of batches were not claimed, or old ones not deleted")
