"""Adoption: this replica continues responses whose owner died, was stopped, or lost its connection to the database."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final

from ....engine import Replay, Snapshot, ids_in
from ...database.errors import FencedError, StoreUnavailableError
from ...errors.request_errors import BUSY_STATUSES, ApiError
from ...generation.admission import admission, stored_json
from ...generation.prompts import Prompt
from ...generation.service import Service
from ...storage.claims import Claimant, Places
from ...storage.work import SUSPECT_DEATHS, Lease
from ...storage.worker import WorkKind
from ...tenants import tenant
from . import event_log, response_table
from .background_responses import BackgroundRun, end_early
from .body import ResponseBody, generation_spec
from .builder import ResponsesBuilder
from .event_log import unpack_delta
from .response_store import ResponseLog, ResponseStore
from .response_table import Adoption

_MAX_CLAIMS: Final = 8
"""Maximum number of responses to adopt at a time."""

_OTHERS_S: Final = 10.0
"""Seconds for which a suspect waits for other adopted responses to end. After that it runs together with them."""

_FIRST_ALONE_S: Final = 30.0
_MAX_ALONE_S: Final = 3600.0
"""Seconds for which a suspect runs alone. The time doubles with each further death."""

_logger: Final = logging.getLogger(__name__)


class AdoptionKind(WorkKind[Adoption]):
    """Running responses, as work of a replica. A suspect runs alone for a limited time, since a response may take days.

    Args:
      service: Service that generates.
      responses: The service's store.
    """

    def __init__(self, service: Service, responses: ResponseStore) -> None:
        self._service = service
        self._responses = responses
        self._may_claim = False
        self.others_s = _OTHERS_S

    def alone_s(self, claim: Adoption) -> float | None:
        return min(_FIRST_ALONE_S * 2 ** (claim.claim.num_deaths - SUSPECT_DEATHS), _MAX_ALONE_S)

    def bar_others(self) -> AbstractAsyncContextManager[None]:
        """Bars preemptible work."""
        return self._service.admissions.preemptible.barred()

    def places(self, running: Collection[Adoption]) -> Places:
        """Returns the slots that lines of batches yield or that are free, as the engine knows them some time after the
        last adoptions.
        """
        service = self._service
        is_draining = service.open_requests.is_draining
        if is_draining or not (self._responses.is_shared and service.engine.is_ready and self._may_claim):
            return Places(0, 0)
        stats = service.engine.stats
        num_others = stats.num_running - stats.num_preemptible_running
        free = stats.slots - num_others - stats.num_waiting - len(running)
        return Places(most := max(min(free, _MAX_CLAIMS), 0), most)

    async def claim(self, places: Places) -> Sequence[Adoption]:
        self._may_claim = False
        service, responses = self._service, self._responses
        engine, reserved_s = service.engine_identity, responses.adopt_after_s
        claimant = Claimant(responses.leases.owner, service.model.identity, engine, reserved_s)
        adoptions = await responses.leases.write(lambda each: response_table.claim(each, claimant, places))
        responses.stats.adoptions += len(adoptions)
        return adoptions

    def stop(self, lease: Lease, task: asyncio.Task[None] | None) -> None:
        """Aborts the generation, which then finds out that its log has another owner."""
        log = self._responses.logs.get(lease.name)
        if log is not None and log.lease == lease:
            log.is_lost = True
            tenant.set(lease.tenant)  # of this task only
            self._service.tracked.abort(lease.id)

    async def look(self, running: Collection[Adoption]) -> bool:
        self._may_claim, stats = True, self._responses.stats
        stats.unattended = self._responses.leases.num_strays
        stats.running, stats.orphaned = await self._responses.database.run(response_table.count_running)
        return True

    async def clean(self) -> None:
        await self._responses.expire()

    async def run(self, claim: Adoption) -> Callable[[], Awaitable[None]] | None:
        """Continues a response under its own admission, or ends it if it has caused too many deaths of its owners."""
        tenant.set(claim.record.tenant)  # of this task only
        own = self._service.admissions.open()
        admission.set(own)
        unit, record = claim.claim, claim.record
        log = ResponseLog(
            self._responses, unit.lease, record.is_streamed, claim.engine, claim.last, unit.num_bytes, record.checkpoint
        )
        task = asyncio.current_task()
        assert task is not None
        log.hold(task)
        try:
            rest = await self._continue_or_end(claim, log)
        finally:
            own.release()
        return None if rest is None else lambda: rest

    async def _continue_or_end(self, adoption: Adoption, log: ResponseLog) -> asyncio.Task[None] | None:
        """Returns the task that generates the rest of a response; None if there is none here.

        A response that still runs here, whose lease had ended, is stopped, and adopted by a later look.
        """
        response_id, is_exact = log.lease.id, log.engine is not None
        if self._service.open_requests.is_draining or log.lease.name in self._responses.tasks:
            self._service.tracked.abort(response_id)
            await log.release()
            return None
        try:
            if not adoption.claim.is_deadly:
                run = await self._continued(adoption, log)
                how = "exactly" if is_exact else "inexactly"
                _logger.info("continues %s %s after event %d", response_id, how, log.last.next_event - 1)
                return log.start(run.run())
            num_deaths = adoption.claim.num_lone_deaths
            message = f"{num_deaths} replicas died while this was the only adopted response that they ran"
            about = {"code": "server_error", "message": message}
            await end_early(self._responses, adoption.record, status="failed", error=about)
        except (FencedError, StoreUnavailableError):
            raise
        except Exception as error:
            _logger.exception("%s cannot be continued here", response_id)
            is_busy = isinstance(error, ApiError) and error.status_code in BUSY_STATUSES
            await log.release(is_death=not is_busy)
        return None

    async def _continued(self, adoption: Adoption, log: ResponseLog) -> BackgroundRun:
        """Returns the rest of a response's generation."""
        service, own, is_exact = self._service, admission.get(), log.engine is not None
        record = adoption.record
        request, prompt_ids = record.request or b"", record.prompt or b""
        await own.keep(len(request) + len(prompt_ids))

        def parse() -> tuple[ResponseBody, Prompt]:
            return ResponseBody.model_validate(stored_json(request)), Prompt(ids_in(prompt_ids), is_chat=True)

        body, prompt = await own.run(parse, is_long=True)
        packed, place = list[bytes](), 0  # the log is complete: its former owners cannot write to it any more
        read = partial(event_log.new_entries, name=log.lease.name)
        while some := (await self._responses.database.run(partial(read, place=place)))[0]:
            packed += [entry.delta for entry in some if entry.delta]
            place = some[-1].number + 1
        deltas = await own.run(lambda: [unpack_delta(each) for each in packed], is_long=True)
        generated = tuple(token_id for delta in deltas for token_id in delta.token_ids)
        pending = stored_json(record.response)
        replay = Replay(generated, await self._snapshot(adoption)) if is_exact and generated else None
        spec = generation_spec(body, prompt, service, None, generated, replay)
        builder = ResponsesBuilder(body, service.model, spec, None, pending["id"], pending["created_at"])
        await own.run(lambda: builder.replay(deltas, log.last.next_event, is_exact=is_exact), is_long=True)
        (engine_request,) = await service.requests(spec, builder.id)
        return BackgroundRun(service, builder, spec, engine_request, log, is_adopted=True)

    async def _snapshot(self, adoption: Adoption) -> Snapshot | None:
        """Returns the state of the latest checkpoint, which reduces the tokens to decode again."""
        files, formats, name = (
            self._responses.files,
            self._service.engine.request_snapshot_format,
            adoption.record.checkpoint,
        )
        if files is None or formats is None or name is None:
            return None
        checkpoint = await files.read(name, formats)
        return None if checkpoint is None else checkpoint.snapshot
