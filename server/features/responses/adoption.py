"""Adoption: this replica continues responses whose owner has died, was stopped, or has lost the database."""

import asyncio
import logging
from dataclasses import replace
from typing import Final

import orjson

from ....engine import Replay, Snapshot
from ...database.errors import FencedError, StoreUnavailableError
from ...generation.prompts import Prompt
from ...generation.service import Service
from ...observability.request_metrics import Fact, observed
from ...tenancy.tenant import tenant
from .background import Background
from .background_responses import BackgroundRun, body_of, end_early, prompt_ids
from .builder import ResponsesBuilder
from .conversion import generation_options, generation_spec
from .durable_responses import DurableLog, DurableResponses
from .logged_delta import unpack_delta
from .records import Claim

_PAUSE_S: Final = 2.0
"""Seconds between two looks for responses without an owner. Leases, which last longer, are extended as often."""

_EXPIRE_PAUSES: Final = 30
"""Number of looks after which old responses are deleted."""

_MAX_CLAIMS: Final = 8
"""Maximum number of responses to adopt at a time."""

_MAX_STALLS: Final = 5
"""Number of adoptions without any progress after which a response fails: it may be what ends its owners."""

_logger: Final = logging.getLogger(__name__)


class Adopter:
    """Keeps the leases of this replica's responses, and adopts those of others.

    Args:
      service: Service that generates.
      responses: The service's store.
      background: Tasks of the responses that are generated here.
    """

    def __init__(self, service: Service, responses: DurableResponses, background: Background) -> None:
        self._service = service
        self._responses = responses
        self._background = background
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, once the engine is ready."""
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
        """Extends leases, stops responses that others have taken, and adopts what has no owner."""
        for owner, response_id in await self._responses.renew():
            tenant.set(owner)  # of this task only
            self._service.tracked.abort(response_id)
        if limit := self._num_free():
            service = self._service
            for claim in await self._responses.claim(service.model.identity, limit, service.engine_identity):
                tenant.set(claim.record.tenant)
                with observed(service.metrics.requests.observers, "adoption", response=claim.lease.id) as facts:
                    await self._adopt(claim, facts)

    def _num_free(self) -> int:
        """Returns how many responses may be adopted now: only those that get a slot at once."""
        service = self._service
        if service.open_requests.is_draining or not service.engine.is_ready:
            return 0
        stats = service.engine.stats
        return max(min(stats.slots - stats.num_running - stats.num_waiting, _MAX_CLAIMS), 0)

    async def _adopt(self, claim: Claim, facts: dict[str, Fact]) -> None:
        """Continues a response, or ends it if it may be what ends its owners.

        Args:
          facts: Receives what is continued, and from where.
        """
        log = self._responses.log_of(claim)
        facts.update(tenant=claim.record.tenant, tokens=log.num_committed, exact=claim.is_exact)
        try:
            if claim.num_stalls > _MAX_STALLS:
                error = {"code": "server_error", "message": f"{claim.num_stalls} replicas made no progress with it"}
                await end_early(log, log.num_events, claim.record.response, status="failed", error=error)
                return
            run = await self._continued(claim, log)
            replay = run.choice.replay
            facts["checkpoint"] = replay is not None and replay.snapshot is not None
        except FencedError as error:
            _logger.info("%s", error)
        except Exception:
            facts["failed"] = True
            _logger.exception("%s cannot be continued here", claim.lease.id)
            await log.release()
        else:
            how = "exactly" if claim.is_exact else "inexactly"
            _logger.info("continues %s %s after event %d", claim.lease.id, how, log.num_events - 1)
            run.start(self._background)

    async def _continued(self, claim: Claim, log: DurableLog) -> BackgroundRun:
        """Returns the rest of a response's generation."""
        service, job = self._service, claim.job
        body, prompt = body_of(job), Prompt(prompt_ids(job))
        params, constraint = generation_options(body, service)
        spec = generation_spec(body, prompt, params, constraint)
        (choice,) = await service.choices(spec)
        deltas = [unpack_delta(entry.delta) for entry in claim.entries if entry.delta]
        generated = tuple(token_id for delta in deltas for token_id in delta.token_ids)
        builder = ResponsesBuilder(body, service.model, prompt, params[0], pending=orjson.loads(claim.record.response))
        builder.replay(deltas, log.num_events, is_exact=claim.is_exact)
        choice = replace(choice, earlier_ids=generated)
        if claim.is_exact and generated:
            choice = replace(choice, replay=Replay(generated, await self._snapshot(claim, prompt, len(generated))))
        return BackgroundRun(service, builder, choice, log, is_pending=not claim.entries, is_adopted=True)

    async def _snapshot(self, claim: Claim, prompt: Prompt, num_generated: int) -> Snapshot | None:
        """Returns the state of the latest checkpoint, after which fewer tokens are decoded again."""
        formats = self._service.engine.checkpoint_format
        checkpoint = None if formats is None else await self._responses.checkpoint_of(claim, formats)
        if checkpoint is None:
            return None
        num_tokens = checkpoint.snapshot.length - len(prompt.token_ids) + 1
        if num_tokens != checkpoint.num_tokens or num_tokens > num_generated:
            _logger.warning("the checkpoint of %s is of other tokens: it is decoded again", claim.lease.id)
            return None
        return checkpoint.snapshot
