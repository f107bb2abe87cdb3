"""Adoption: this replica continues responses whose owner died, was stopped, or lost its connection to the database."""

import asyncio
import logging
from dataclasses import replace
from typing import Final

from ....engine import Replay, Snapshot
from ...database.errors import FencedError, StoreUnavailableError
from ...errors.request_errors import BUSY_STATUSES, ApiError
from ...generation.admission import admission
from ...generation.prompts import Prompt
from ...generation.service import Service
from ...observability.request_metrics import Fact, observed
from ...tenancy.tenant import tenant
from .background import Background
from .background_responses import BackgroundRun, body_of, end_early, prompt_ids
from .body import generation_options, generation_spec
from .builder import ResponsesBuilder
from .event_table import unpack_delta
from .records import SUSPECT_DEATHS, Claim
from .response_store import ResponseLog, ResponseStore

_PAUSE_S: Final = 2.0
"""Seconds between two looks for responses without an owner, and between two renewals of leases, which last longer."""

_EXPIRE_PAUSES: Final = 30
"""Number of looks after which old responses are deleted."""

_MAX_CLAIMS: Final = 8
"""Maximum number of responses to adopt at a time."""

_OTHERS_S: Final = 10.0
"""Seconds for which a suspect waits for other adopted responses to end. After that it runs together with them."""

_FIRST_ALONE_S: Final = 30.0
_MAX_ALONE_S: Final = 3600.0
"""Seconds for which a suspect runs alone. The time doubles with each further death."""

_logger: Final = logging.getLogger(__name__)


class Adopter:
    """Renews the leases of this replica's responses, and adopts responses of other replicas.

    Args:
      service: Service that generates.
      responses: The service's store.
      background: Tasks of the responses that are generated here.
    """

    def __init__(self, service: Service, responses: ResponseStore, background: Background) -> None:
        self._service = service
        self._responses = responses
        self._background = background
        self._task: asyncio.Task[None] | None = None
        self._adopted: set[asyncio.Task[None]] = set()
        self._alone: asyncio.Task[None] | None = None  # of a suspect

    def start(self) -> None:
        """Starts the adopter's task. The engine must be ready."""
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        looks = 0
        while True:
            try:
                await self.look()
                if looks % _EXPIRE_PAUSES == 0:
                    await self._responses.expire()
            except StoreUnavailableError as error:
                _logger.debug("%s", error)
            except Exception:
                _logger.exception("responses of other replicas were not adopted")
            looks += 1
            await asyncio.sleep(_PAUSE_S)

    async def look(self) -> None:
        """Renews leases, stops responses that other replicas have taken, and adopts responses without an owner."""
        for owner, response_id in await self._responses.renew():
            tenant.set(owner)  # of this task only
            self._service.tracked.abort(response_id)
        if limit := self._num_free():
            service = self._service
            for claim in await self._responses.claim(service.model.identity, limit, service.engine_identity):
                tenant.set(claim.record.tenant)
                if claim.deaths.is_suspect and not claim.deaths.is_guilty:
                    self._start_alone(claim)
                else:
                    await self._adopt(claim, self._responses.log_of(claim))

    def _num_free(self) -> int:
        """Returns how many responses may be adopted now: at most the free slots, and 0 while a suspect runs alone."""
        service = self._service
        is_draining = service.open_requests.is_draining
        if is_draining or not (self._responses.is_shared and service.engine.is_ready) or self._alone is not None:
            return 0
        stats = service.engine.stats
        return max(min(stats.slots - stats.num_running - stats.num_waiting, _MAX_CLAIMS), 0)

    def _start_alone(self, claim: Claim) -> None:
        """Starts a task that runs a suspect alone for a time. Nothing else is adopted during that time."""
        log = self._responses.log_of(claim)
        self._alone = asyncio.create_task(self._run_alone(claim, log))
        log.hold(self._alone)
        self._alone.add_done_callback(self._end_alone)

    def _end_alone(self, _: asyncio.Task[None]) -> None:
        self._alone = None

    async def _run_alone(self, claim: Claim, log: ResponseLog) -> None:
        """Runs a suspect without other adopted responses and preemptible work, for a time that grows with its deaths.

        The time is limited, because a response may take days and would block all others of the replica.
        """
        _logger.info("%s has lost %d owners: it runs alone", claim.lease.id, claim.deaths.num_deaths)
        async with self._service.admissions.preemptible.barred():
            try:
                if self._adopted:
                    await asyncio.wait(self._adopted, timeout=_OTHERS_S)
                if self._service.open_requests.is_draining:
                    await log.release()
                    return
                is_alone = not self._adopted
                if is_alone:
                    await self._responses.set_alone(log, is_alone=True)
                await self._adopt(claim, log)
                if is_alone and self._adopted:
                    await self._watch_alone(claim, log, set(self._adopted))
            except (FencedError, StoreUnavailableError) as error:
                _logger.info("%s", error)

    async def _watch_alone(self, claim: Claim, log: ResponseLog, running: set[asyncio.Task[None]]) -> None:
        """Waits until a suspect has run alone for its time or has ended, so that others may join it."""
        doublings = claim.deaths.num_deaths - SUSPECT_DEATHS
        _, unfinished = await asyncio.wait(running, timeout=min(_FIRST_ALONE_S * 2**doublings, _MAX_ALONE_S))
        if not unfinished:
            return
        try:
            await self._responses.set_alone(log, is_alone=False)
        except StoreUnavailableError:
            await asyncio.wait(running)

    async def _adopt(self, claim: Claim, log: ResponseLog) -> None:
        """Continues a response under its own admission, or ends it if it has caused too many deaths of its owners."""
        own = self._service.admissions.open()
        admission.set(own)  # of this task only
        try:
            await self._continue_or_end(claim, log)
        finally:
            own.release()

    async def _continue_or_end(self, claim: Claim, log: ResponseLog) -> None:
        with observed(self._service.metrics.requests.observers, "adoption", response=claim.lease.id) as facts:
            facts.update(tenant=claim.record.tenant, tokens=log.num_committed, exact=claim.is_exact)
            try:
                if claim.deaths.is_guilty:
                    await self._fail(claim, log)
                else:
                    await self._begin(claim, log, facts)
            except (FencedError, StoreUnavailableError) as error:
                _logger.info("%s", error)
            except Exception as error:
                facts["failed"] = True
                _logger.exception("%s cannot be continued here", claim.lease.id)
                is_busy = isinstance(error, ApiError) and error.status_code in BUSY_STATUSES
                await log.release(is_death=not is_busy)

    async def _fail(self, claim: Claim, log: ResponseLog) -> None:
        message = f"{claim.deaths.num_alone} replicas died while this was the only adopted response that they ran"
        error = {"code": "server_error", "message": message}
        await end_early(log, log.num_events, claim.record.response, status="failed", error=error)

    async def _begin(self, claim: Claim, log: ResponseLog, facts: dict[str, Fact]) -> None:
        """Continues a response in a task. A response that still runs here is stopped, and adopted by a later look.

        Args:
          facts: Receives the point from which the response is continued.
        """
        if self._background.is_running(claim.lease.id):  # this replica claimed it again after its own lease had ended
            self._service.tracked.abort(claim.lease.id)
            await log.release()
            return
        run = await self._continued(claim, log)
        replay = run.choice.replay
        facts["checkpoint"] = replay is not None and replay.snapshot is not None
        how = "exactly" if claim.is_exact else "inexactly"
        _logger.info("continues %s %s after event %d", claim.lease.id, how, log.num_events - 1)
        task = run.start(self._background)
        self._adopted.add(task)
        task.add_done_callback(self._adopted.discard)

    async def _continued(self, claim: Claim, log: ResponseLog) -> BackgroundRun:
        """Returns the rest of a response's generation."""
        service, job, own = self._service, claim.job, admission.get()
        await own.keep(len(job.request) + len(job.prompt))
        body, prompt = await own.run(lambda: (body_of(own, job), Prompt(prompt_ids(job), is_chat=True)), is_long=True)
        params, constraint = generation_options(body, service)
        spec = generation_spec(body, prompt, params, constraint)
        (choice,) = await service.choices(spec)
        packed = await self._responses.deltas(claim)
        deltas = await own.run(lambda: [unpack_delta(own, each) for each in packed], is_long=True)
        generated = tuple(token_id for delta in deltas for token_id in delta.token_ids)
        pending = own.parse_stored(claim.record.response)
        builder = ResponsesBuilder(body, service.model, prompt, params[0], pending=pending)
        await own.run(lambda: builder.replay(deltas, log.num_events, is_exact=claim.is_exact), is_long=True)
        choice = replace(choice, earlier_ids=generated)
        if claim.is_exact and generated:
            choice = replace(choice, replay=Replay(generated, await self._snapshot(claim, prompt, len(generated))))
        return BackgroundRun(service, builder, choice, log, is_pending=not claim.log.num_entries, is_adopted=True)

    async def _snapshot(self, claim: Claim, prompt: Prompt, num_generated: int) -> Snapshot | None:
        """Returns the state of the latest checkpoint, which reduces the tokens to decode again."""
        formats = self._service.engine.request_snapshot_format
        checkpoint = None if formats is None else await self._responses.checkpoint_of(claim, formats)
        if checkpoint is None:
            return None
        num_tokens = checkpoint.snapshot.length - len(prompt.token_ids) + 1
        if num_tokens != checkpoint.num_tokens or num_tokens > num_generated:
            _logger.warning("the checkpoint of %s is of other tokens: it is decoded again", claim.lease.id)
            return None
        return checkpoint.snapshot
