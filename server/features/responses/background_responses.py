"""Background responses, which are generated without a client and may be continued by another replica."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

from ....engine import (
    ConstraintLostError,
    EngineDeadError,
    EngineStoppedError,
    QueueFullError,
    Request,
    SamplingParams,
    id_bytes,
)
from ...database.errors import FencedError, StoreUnavailableError
from ...errors.request_errors import ApiError, from_exception
from ...generation.admission import admission
from ...generation.delta import Delta, DeltaJoiner
from ...generation.generation import Generation
from ...generation.service import Service
from ...generation.spec import GenerationSpec
from ...http.responses import to_json
from .background import Background
from .body import ResponseBody
from .builder import NO_OUTPUT, TYPED_EVENTS, ResponsesBuilder
from .conversation_store import output_items
from .conversation_table import Turn
from .response_store import ResponseLog, ResponseStore
from .response_table import Job, ResponseRecord

_UNSEEN_S: Final = 0.25
"""Seconds between two writes to a log whose events no client is following."""

_logger: Final = logging.getLogger(__name__)


def job_of(
    body: ResponseBody,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    service: Service,
    turn: Turn | None,
    *,
    state_is_imported: bool,
) -> Job:
    """Returns what another replica needs to continue a response, except the log.

    Args:
      turn: Turn of the response in its conversation; None if it has none.
      state_is_imported: Whether the prompt continues a state of another engine, which its tokens do not repeat.
    """
    seeded = body.model_copy(update={"seed": params.seed})
    request = seeded.model_dump_json(by_alias=True, exclude_unset=True, exclude={"input"}).encode()
    engine = None if state_is_imported else service.engine_identity
    return Job(service.model.identity, request, id_bytes(prompt_token_ids), engine, turn)


@dataclass(frozen=True, slots=True)
class BackgroundRun:
    """Generation of a background response, from its first or any later event until its end is stored.

    Attributes:
      request: The engine's request for the only choice of the spec.
      log: Log of the response, which this replica owns.
      is_pending: Whether the response has no event yet.
      is_adopted: Whether another replica started it.
    """

    service: Service
    builder: ResponsesBuilder
    spec: GenerationSpec
    request: Request
    log: ResponseLog
    is_pending: bool = False
    is_adopted: bool = False

    def start(self, background: Background) -> asyncio.Task[None]:
        """Generates the response in a task, which holds its log, and returns the task."""
        task = background.start(self.builder.id, self.run())
        self.log.hold(task)
        return task

    async def run(self) -> None:
        """Generates the response. When this returns, the response has ended or is left to another owner."""
        try:
            await self._run()
        except FencedError as error:
            _logger.info("%s", error)
        except StoreUnavailableError as error:
            _logger.warning("%s is left to other replicas: %s", self.builder.id, error)
        except Exception:
            _logger.exception("%s cannot be ended here", self.builder.id)

    async def _run(self) -> None:
        try:
            async with self.service.generation(self.builder.id, self.spec, [self.request]) as generation:
                try:
                    await self._generate(generation)
                except Exception as error:
                    if isinstance(error, StoreUnavailableError) or await self.log.is_continued():
                        generation.discard()  # the replica that continues the response counts all of it
                    raise
        except (FencedError, StoreUnavailableError):
            raise
        except Exception as error:
            if not (self._is_for_others(error) and await self.log.release(is_death=is_death(error))):
                await self._fail(from_exception(error), error)

    def _is_for_others(self, error: Exception) -> bool:
        """Returns whether the error is specific to this replica, so that others may continue the response."""
        if isinstance(error, QueueFullError):
            return self.is_adopted
        return isinstance(error, EngineDeadError | ConstraintLostError)

    async def _generate(self, generation: Generation) -> None:
        builder = self.builder
        if self.is_pending:
            await self.log.append(encoded(builder.opening()))
        last: list[bytes] = []
        async with aclosing(self._deltas(generation)) as deltas:
            async for delta in deltas:
                last = encoded(builder.chunks(delta))
                if delta.finish_reason is None and (last or delta.token_ids):
                    await self.log.append(last, delta)
        await self._end([*last, *encoded(builder.closing())])

    async def _deltas(self, generation: Generation) -> AsyncGenerator[Delta]:
        """Yields the deltas to log. Without followers, deltas are joined for up to `_UNSEEN_S` seconds."""
        if self.log.is_streamed:
            async for delta in generation:
                yield delta
            return
        now, unlogged = asyncio.get_running_loop().time, DeltaJoiner()
        logged_at = now()
        with suppress(StopAsyncIteration):
            while True:
                newest = await generation.next_within(_UNSEEN_S)
                if newest is not None:
                    unlogged.add(newest)
                is_last = newest is not None and newest.finish_reason is not None
                if unlogged and (is_last or newest is None or now() - logged_at >= _UNSEEN_S):
                    yield unlogged.take()
                    logged_at = now()

    async def _fail(self, error: ApiError, cause: Exception) -> None:
        if error.status_code == 500:
            _logger.error("a background response failed", exc_info=cause)
        await self._end(encoded(self.builder.failure(error)))

    async def _end(self, events: Sequence[bytes]) -> None:
        assert self.builder.ended is not None
        response, output = self.builder.ended
        await self.log.end(events, to_json(response), output, response["status"], output_items(response))


def is_death(error: Exception) -> bool:
    """Returns whether an error ended the engine or a grammar process, which the response may have caused."""
    return isinstance(error, EngineDeadError | ConstraintLostError) and not isinstance(error, EngineStoppedError)


async def end_early(responses: ResponseStore, record: ResponseRecord, **changes: Any) -> None:
    """Ends a running response in place of its owner, unless it has ended meanwhile.

    Args:
      record: The unfinished response.
      changes: Fields of the final response.
    """
    response = {**admission.get().parse_stored(record.response), **changes}

    def event(number: int) -> bytes:
        return TYPED_EVENTS.encode({"type": "response.failed", "sequence_number": number, "response": response})

    if await responses.end_early(record.id, bytes(to_json(response)), NO_OUTPUT, event):
        responses.stats.ended[response["status"]] += 1


def encoded(chunks: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """Returns events in the encoding of a log."""
    return [TYPED_EVENTS.encode(chunk) for chunk in chunks]
