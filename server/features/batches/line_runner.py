"""Runs a line of a batch: sends it to this replica's own application, without a socket or a key."""

from starlette.types import ASGIApp

from ...database.group_commit import MAX_WRITE
from ...errors.kinds import STORE_FULL
from ...errors.request_errors import BUSY_STATUSES
from ...generation.admission import Admission
from ...generation.service import Service
from ...http.in_process import post_json
from ...schemas.json_limits import LONG_BYTES
from ...tenancy.tenant import tenant
from .batch_lines import (
    BatchLine,
    LineError,
    TokenUsage,
    error_line,
    leading_custom_id,
    line_id,
    parse_line,
    response_line,
)
from .batch_records import LineClaim, LineResult


class LineRunner:
    """Runs lines, and returns their results. Long lines are parsed on worker threads.

    Args:
      service: Service that generates.
      app: Application with the service's routes, which trusts its caller.
    """

    def __init__(self, service: Service, app: ASGIApp) -> None:
        self._service = service
        self._app = app

    async def result(self, claim: LineClaim) -> LineResult | None:
        """Returns the result of a line; None if this replica cannot run it now."""
        tenant.set(claim.lease.tenant)  # of this task only
        id = _id(claim)
        owned = claim.claim
        if owned.is_deadly:  # parsing may end the replica
            message = f"{owned.num_lone_deaths} replicas that ran this line alone ended before it did"
            return _failed(error_line(id, leading_custom_id(claim.data), "server_error", message))
        if claim.is_expired and owned.may_be_deadly:
            return _failed(error_line(id, leading_custom_id(claim.data), "batch_expired", self._expired(claim)))
        own = self._service.admissions.open_preemptible(id, is_repeated=claim.lease.fence > 1)
        try:
            line = await self._parsed(claim, own)
            if claim.is_expired:
                return _failed(error_line(id, line.custom_id, "batch_expired", self._expired(claim)))
            return await self._sent(line, claim, own)
        except LineError as error:  # in a file that another version, or a replica with other settings, has checked
            return _failed(error_line(id, error.custom_id, "invalid_line", str(error)))
        finally:
            own.release()

    async def _sent(self, line: BatchLine, claim: LineClaim, own: Admission) -> LineResult | None:
        response = await post_json(self._app, line.url, line.body, own)
        if response.status in BUSY_STATUSES or response.status == STORE_FULL.status:
            return None
        request_id = response.headers.get("x-request-id", "")
        written = response_line(_id(claim), line.custom_id, response.status, request_id, response.body)
        if len(written) > MAX_WRITE.num_bytes:
            message = f"the result has {len(written):,} bytes, and at most {MAX_WRITE.num_bytes:,} are stored"
            return _failed(error_line(_id(claim), line.custom_id, "result_too_large", message))
        if response.status != 200:
            return _failed(written)
        usage = await own.run(
            lambda: TokenUsage.of(own.parse_stored(response.body)), is_long=len(response.body) >= LONG_BYTES
        )
        return LineResult(written, is_failed=False, usage=usage)

    async def _parsed(self, claim: LineClaim, own: Admission) -> BatchLine:
        """Returns the request of a line.

        Raises:
          LineError: The line is not a request.
        """
        data, most = claim.data, self._service.admissions.max_body_bytes
        return await own.run(
            lambda: parse_line(data, claim.lease.number, most, own.parse_now), is_long=len(data) >= LONG_BYTES
        )

    def _expired(self, claim: LineClaim) -> str:
        is_served = claim.model == self._service.model.identity
        return "the batch expired before " + ("this line ran" if is_served else "a server with its model ran this line")


def _id(claim: LineClaim) -> str:
    return line_id(claim.lease.number, claim.lease.id.removeprefix("batch_"))


def _failed(line: bytes) -> LineResult:
    return LineResult(line, is_failed=True)
