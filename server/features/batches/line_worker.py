"""Runs lines of batches in free slots. Any number of replicas that share a database do so."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final

from starlette.types import ASGIApp

from ...database.group_commit import MAX_WRITE
from ...errors.kinds import STORE_FULL
from ...errors.request_errors import BUSY_STATUSES
from ...generation.admission import Admission, PreemptibleAdmission, stored_json
from ...generation.service import Service
from ...http.in_process import post_json
from ...schemas.json_limits import LONG_BYTES
from ...storage.claims import Places
from ...storage.work import Lease
from ...storage.worker import RENEW_S, WorkKind
from ...tenants import tenant
from .batch_lines import (
    BatchLine,
    LineError,
    LineResult,
    error_result,
    line_id,
    max_line_bytes,
    parse_line,
    response_result,
)
from .batch_store import BatchStore
from .batch_table import LineClaim

_PAUSE_S: Final = 0.25
"""Maximum seconds between two looks for lines that other replicas may add, and seconds for which a line that this
replica cannot run stays open."""

_MAX_EXPIRED: Final = 200
"""Maximum number of lines of expired batches that end at a time."""

_SHARE_CLAIMED: Final = 8
"""Reciprocal of the share of the room for lines that must be free before more are claimed. A claim takes the same
number of statements for any number of lines."""

_SHARE_RESERVED: Final = 8
"""Reciprocal of the share of the room for lines, and of their memory, that one of several tenants leaves to others."""

MAX_LONGEST: Final = 32
"""Number of lines of the maximum size that may be open. More may be open if they are shorter."""


class OpenLines:
    """Number and size of the lines that a replica has open, by tenant.

    Args:
      claims: The open lines.
      max_line_bytes: Maximum bytes of a line.
      is_shared: Whether there is more than one tenant.

    Attributes:
      held: Number of open lines of each tenant that has any.
      num_bytes: Bytes of all open lines.
    """

    def __init__(self, claims: Collection[LineClaim], max_line_bytes: int, *, is_shared: bool) -> None:
        self.held = Counter(claim.lease.tenant for claim in claims)
        self._bytes_of = Counter[str]()
        for claim in claims:
            self._bytes_of[claim.lease.tenant] += len(claim.data)
        self.num_bytes = self._bytes_of.total()
        self._max_line_bytes = max_line_bytes
        self._is_shared = is_shared

    @property
    def num_fitting(self) -> int:
        """Number of further lines that fit in memory if all are of the maximum size."""
        return self._fitting(MAX_LONGEST, self.num_bytes)

    def wanted(self, room: int) -> Places:
        """Returns how many lines to claim.

        Tenants below an equal share of the room get their share even if other requests leave little room, or if too
        many lines are open because there was more room before.

        Args:
          room: Maximum number of lines to have open.
        """
        num_free = room - self.held.total()
        if num_free >= max(room // _SHARE_CLAIMED, 1):
            return self._places(num_free, room - room // _SHARE_RESERVED if self._is_shared else room)
        if not (room and self._is_shared):
            return Places(0, 0)
        share = max(room // (len(self.held) + 1), 1)
        taken = sum(min(count, share) for count in self.held.values())
        return self._places(max(room - taken, 0), share)

    def _places(self, num_free: int, max_of_tenant: int) -> Places:
        num_free, held = min(num_free, self.num_fitting), dict(self.held)
        if self._is_shared:
            max_longest = MAX_LONGEST - MAX_LONGEST // _SHARE_RESERVED
            num_free = min(num_free, max_longest)
            for tenant, num_bytes in self._bytes_of.items():  # those without memory count as full
                held[tenant] = max(held[tenant], max_of_tenant - self._fitting(max_longest, num_bytes))
        return Places(num_free, max_of_tenant, held)

    def _fitting(self, max_longest: int, num_bytes: int) -> int:
        return max(max_longest * self._max_line_bytes - num_bytes, 0) // self._max_line_bytes


class LineKind(WorkKind[LineClaim]):
    """Lines of batches, as work of a replica.

    The replica keeps twice as many lines open as there are slots for them, so that a freed slot immediately gets its
    next request. A line whose result is being stored no longer counts as open. Fewer lines are claimed while the open
    lines are large.

    Args:
      service: Service that generates.
      app: Application with the service's routes, which trusts its caller.
      batches: Store of the batches.
      tenants: Number of tenants.
    """

    def __init__(self, service: Service, app: ASGIApp, batches: BatchStore, tenants: int = 1) -> None:
        self._tenants = tenants
        self._service = service
        self._batches = batches
        self._app = app
        self.pause_s = _PAUSE_S if batches.files.database.is_shared else RENEW_S

    @property
    def gives_way(self) -> bool:
        service = self._service
        if service.engine.error is not None:
            return False  # a line may have ended the engine, which counts as its owner's death
        return (
            service.admissions.preemptible.is_barred or service.open_requests.is_draining or not service.engine.is_ready
        )

    def open_lines(self, running: Collection[LineClaim]) -> OpenLines:
        """Returns the number and size of running lines."""
        longest = max_line_bytes(self._service.admissions.max_body_bytes)
        return OpenLines(running, longest, is_shared=self._tenants > 1)

    def places(self, running: Collection[LineClaim]) -> Places:
        """Returns the room for lines: none while other requests take all slots."""
        stats = self._service.engine.stats
        if self._service.engine.error is not None:
            return Places(0, 0)
        return self.open_lines(running).wanted(2 * max(stats.num_preemptible_slots - stats.num_waiting, 0))

    async def claim(self, places: Places) -> Sequence[LineClaim]:
        leases, model = self._batches.leases, self._service.model.identity
        return await leases.write(lambda each: self._batches.lines.claim(each, leases.owner, model, places))

    def name_of(self, lease: Lease) -> str:
        return f"line {lease.number} of {lease.id}"

    async def run(self, claim: LineClaim) -> Callable[[], Awaitable[bool]] | None:
        leases = self._batches.leases
        result = await self._result(claim)
        if result is not None:
            return partial(self._batches.end, claim.lease, result)
        if self._service.engine.error is not None:
            await leases.release([claim.lease], is_death=True)
        else:
            await asyncio.sleep(_PAUSE_S)
            await leases.refuse([claim.lease])
        return None

    async def look(self, running: Collection[LineClaim]) -> bool:
        """Ends lines of expired batches, including models that no replica serves; returns whether these were all."""
        leases, claim = self._batches.leases, self._batches.lines.claim_expired
        num_ended = 0
        while num_ended < _MAX_EXPIRED:
            limit = max(min(_MAX_EXPIRED - num_ended, self.open_lines(running).num_fitting), 1)
            claims = await leases.write(partial(claim, owner=leases.owner, limit=limit))
            results = await asyncio.gather(*map(self._result, claims))
            ended = [(claim.lease, result) for claim, result in zip(claims, results, strict=True) if result is not None]
            await asyncio.gather(*(self._batches.end(*each) for each in ended))
            if len(claims) < limit:
                return True
            num_ended += limit
        return False

    async def clean(self) -> None:
        await self._batches.look()

    async def _result(self, claim: LineClaim) -> LineResult | None:
        """Returns the result of a line; None if this replica cannot run it now. A long line is parsed on a thread."""
        tenant.set(claim.lease.tenant)  # of this task only
        owned, data, number = claim.claim, claim.data, claim.lease.number
        id = line_id(number, claim.lease.id.removeprefix("batch_"))
        if owned.is_deadly:  # parsing may end the replica
            message = f"{owned.num_lone_deaths} replicas that ran line {number} alone ended before it did"
            return error_result(id, None, "server_error", message)
        admissions = self._service.admissions
        own = PreemptibleAdmission(admissions, id, is_repeated=claim.lease.fence > 1)
        try:
            most, is_long = admissions.max_body_bytes, len(data) >= LONG_BYTES
            line = await own.run(lambda: parse_line(data, number, most, own.parse_now), is_long=is_long)
            if claim.is_expired:
                is_served = claim.model == self._service.model.identity
                ran = "this line ran" if is_served else "a server with its model ran this line"
                return error_result(id, line.custom_id, "batch_expired", f"the batch expired before {ran}")
            return await self._sent(line, id, own)
        except LineError as error:  # in a file that another version, or a replica with other settings, has checked
            return error_result(id, error.custom_id, "invalid_line", str(error))
        finally:
            own.release()

    async def _sent(self, line: BatchLine, id: str, own: Admission) -> LineResult | None:
        response = await post_json(self._app, line.url, line.body, own)
        status, body = response.status, response.body
        if status in BUSY_STATUSES or status == STORE_FULL.status:
            return None
        request_id = response.headers.get("x-request-id", "")
        result = await own.run(
            lambda: response_result(id, line.custom_id, status, request_id, body, stored_json),
            is_long=len(body) >= LONG_BYTES,
        )
        if len(result.line) > MAX_WRITE.num_bytes:
            message = f"the result has {len(result.line):,} bytes, and at most {MAX_WRITE.num_bytes:,} are stored"
            return error_result(id, line.custom_id, "result_too_large", message)
        return result
