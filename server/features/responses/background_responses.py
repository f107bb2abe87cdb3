"""Background responses, which are generated without a client and may be continued by another replica.

A stream in the foreground becomes one if this replica stops before its end.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Final

from ....engine import ConstraintLostError, EngineDeadError, EngineStoppedError, QueueFullError, Request, id_bytes
from ...constraints.tool_calls import CallPiece
from ...database.errors import FencedError, StoreUnavailableError
from ...database.group_commit import WriteLoad
from ...errors.request_errors import ApiError, from_exception, stream_moved
from ...generation.admission import stored_json
from ...generation.delta import Delta
from ...generation.generation import Generation
from ...generation.service import Service
from ...generation.spec import GenerationSpec
from ...http.responses import to_json
from ...text.chat_format import ConversationMessage
from . import response_table
from .body import ResponseBody
from .builder import NO_OUTPUT, TYPED_EVENTS, ResponsesBuilder, error_event
from .conversations import Turn, pack_items
from .event_log import BEFORE_FIRST, pack_delta
from .response_store import ResponseLog, ResponseStore
from .response_table import Job, ResponseRecord, pack

_UNSEEN_S: Final = 0.25
"""Seconds between two writes to a log whose events no client can follow."""

_logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A response that is about to be generated.

    Attributes:
      history: Messages before its own, from `pack`; empty if it is not stored.
      turn: Turn in its conversation; None if it has none.
    """

    tenant: str
    id: str
    body: ResponseBody
    spec: GenerationSpec
    history: bytes
    turn: Turn | None

    def job(self, service: Service, response: Mapping[str, Any], *, is_streamed: bool, state_is_imported: bool) -> Job:
        """Returns the generation of the response as a job, which any replica can continue.

        Args:
          response: The response as clients receive it, without output.
          state_is_imported: Whether the prompt continues a state of another engine, which its tokens do not repeat.
        """
        seeded = self.body.model_copy(update={"background": True, "seed": self.spec.params[0].seed})
        turn = self.turn
        record = ResponseRecord(
            self.tenant,
            self.id,
            to_json(response),
            self.history,
            pack([]),
            is_background=True,
            is_streamed=is_streamed,
            is_running=True,
            request=seeded.model_dump_json(by_alias=True, exclude_unset=True, exclude={"input"}).encode(),
            prompt=id_bytes(self.spec.prompts[0].token_ids),
            conversation=None if turn is None else turn.conversation,
            input_items=None if turn is None else pack_items(turn.items),
        )
        return Job(record, service.model.identity, None if state_is_imported else service.engine_identity, turn)


@dataclass(frozen=True, slots=True)
class BackgroundRun:
    """Generation of a background response, from its first or any later event until its end is stored.

    Attributes:
      request: The engine's request for the only choice of the spec.
      log: Log of the response, which this replica owns.
      is_adopted: Whether another replica started it.
    """

    service: Service
    builder: ResponsesBuilder
    spec: GenerationSpec
    request: Request
    log: ResponseLog
    is_adopted: bool = False

    async def run(self) -> None:
        """Generates the response. When this returns, the response has ended or is left to another owner."""
        try:
            await self._run()
        except (FencedError, StoreUnavailableError) as error:
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
            is_busy = self.is_adopted and isinstance(error, QueueFullError)
            is_for_others = is_busy or isinstance(error, EngineDeadError | ConstraintLostError)
            if not (is_for_others and await self.log.release(is_death=is_death(error))):
                failure = from_exception(error)
                if failure.status_code == 500:
                    _logger.error("a background response failed", exc_info=error)
                await self._end(encoded(self.builder.failure(failure)))

    async def _generate(self, generation: Generation) -> None:
        """Logs deltas, which the generation joins during a pause."""
        delta, events = Delta(0), list[bytes]()
        while delta.finish_reason is None:
            await asyncio.sleep(0.0 if self.log.is_streamed else _UNSEEN_S)
            delta = await anext(generation)
            events = encoded(self.builder.chunks(delta))
            if delta.finish_reason is None and (events or delta.token_ids):
                await self.log.append(events, delta)
        await self._end([*events, *encoded(self.builder.closing())])

    async def _end(self, events: Sequence[bytes]) -> None:
        assert self.builder.ended is not None
        await self.log.end(events, *self.builder.ended)


def is_death(error: Exception) -> bool:
    """Returns whether an error ended the engine or a grammar process, which the response may have caused."""
    return isinstance(error, EngineDeadError | ConstraintLostError) and not isinstance(error, EngineStoppedError)


async def end_early(responses: ResponseStore, record: ResponseRecord, **changes: Any) -> None:
    """Ends a running response for its owner, unless it has ended already.

    Args:
      record: The unfinished response.
      changes: Fields of the final response.
    """
    response = {**stored_json(record.response), **changes}
    written = bytes(to_json(response))

    def event(number: int) -> bytes:
        return TYPED_EVENTS.encode({"type": "response.failed", "sequence_number": number, "response": response})

    write = partial(response_table.end_early, response=written, output=pack([NO_OUTPUT]), event=event)
    if await responses.write(write, record.id, WriteLoad(1, 2 * len(written))):
        responses.stats.ended[response["status"]] += 1


def encoded(chunks: Iterable[Mapping[str, Any]]) -> list[bytes]:
    """Returns events in the encoding of a log."""
    return [TYPED_EVENTS.encode(chunk) for chunk in chunks]


class ResumableBuilder(ResponsesBuilder):
    """Builds the events of a stream that other replicas with the same database can continue.

    A response in the foreground is stored at its end. If the engine stops before, its request, tokens and events are
    stored, and it becomes a background response, which another replica adopts. The stream ends with an error that says
    how to follow it there.

    Args:
      responses: The service's store.
      keep: Stores the final response and its message before the client gets them.
    """

    def __init__(
        self,
        prepared: Prepared,
        service: Service,
        responses: ResponseStore,
        keep: Callable[[dict[str, Any], ConversationMessage], Awaitable[None]],
    ) -> None:
        super().__init__(prepared.body, service.model, prepared.spec, keep, prepared.id)
        self._prepared = prepared
        self._service = service
        self._responses = responses
        state = service.restored_state(prepared.spec, prepared.spec.prompts[0])
        self._state_is_imported = state is not None and state.state.is_imported
        self._sizes: list[DeltaSize] = []
        self._has_finished = False
        self._handover: asyncio.Task[ResponseLog] | None = None
        self._log: ResponseLog | None = None
        self._task: asyncio.Task[Any] | None = None

    def opening(self) -> Iterator[dict[str, Any]]:
        self._task = asyncio.current_task()
        self._responses.streams.add(self.hand_over)
        return super().opening()

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if self._handover is not None:
            return iter(())  # another replica generates these tokens again
        self._sizes.append((len(delta.token_ids), len(delta.text), delta.calls))
        self._has_finished = delta.finish_reason is not None
        return super().chunks(delta)

    def closing(self) -> Iterator[dict[str, Any]]:
        if self._handover is not None:
            raise EngineStoppedError("the engine was stopped")
        return super().closing()

    async def hand_over(self) -> None:
        """Stores the current state of the response for other replicas to continue, unless it has all of its tokens.

        Nothing more of it is sent. This replica keeps the lease until the engine has stopped or the client has
        disconnected.

        Raises:
          StoreUnavailableError: The database is unavailable, full or too slow.
        """
        if self._handover is None and not self._has_finished:
            output = self._output.take() if self._output else Delta(0)
            self._handover = asyncio.create_task(self._store(output))
        if self._handover is not None:
            self._log = await asyncio.shield(self._handover)

    async def interrupt(self, error: Exception) -> None:
        if isinstance(error, EngineDeadError):
            await self.hand_over()
            if self._log is not None:
                await self._log.release(is_death=is_death(error))

    def failure(self, error: ApiError) -> Iterator[dict[str, Any]]:
        if self._log is None:
            yield from super().failure(error)
            return
        last = next(self._numbers) - 1
        resume = f"/v1/responses/{self.id}?stream=true&starting_after={last}"
        yield {**error_event(stream_moved(resume), last), "response_id": self.id, "resume": resume}

    def close(self) -> None:
        self._responses.streams.discard(self.hand_over)

    async def _store(self, output: Delta) -> ResponseLog:
        """Stores the response with its log. This replica owns it until the stream's task ends.

        Args:
          output: All of its deltas, joined.
        """
        assert self._task is not None
        service, prepared = self._service, self._prepared
        events = await service.workers.run(lambda: self._events(output))
        num_tokens = len(output.token_ids)
        entry = BEFORE_FIRST.followed_by(events, pack_delta(output) if num_tokens else b"", num_tokens)
        response = self.response("in_progress", background=True)
        job = prepared.job(service, response, is_streamed=True, state_is_imported=self._state_is_imported)
        log = await self._responses.open(job, entry, is_left=True)
        log.hold(self._task)
        return log

    def _events(self, output: Delta) -> list[bytes]:
        """Returns all events so far. The same deltas produce the same events again.

        Args:
          output: All deltas, joined.
        """
        again = ResponsesBuilder(self._body, self._model, self._spec, None, self.id, self._created)
        deltas = split(output, self._sizes)
        return encoded(chain(again.opening(), chain.from_iterable(map(again.chunks, deltas))))


type DeltaSize = tuple[int, int, tuple[CallPiece, ...]]
"""Number of tokens and of characters of a delta, and its pieces of calls."""


def split(joined: Delta, sizes: Iterable[DeltaSize]) -> Iterator[Delta]:
    """Yields the deltas that were joined: their texts, tokens, log-probabilities and calls."""
    token = char = 0
    for num_tokens, num_chars, calls in sizes:
        tokens, chars = slice(token, token + num_tokens), slice(char, char + num_chars)
        token, char = tokens.stop, chars.stop
        token_ids, logprobs = joined.token_ids[tokens], joined.logprobs[tokens]
        yield Delta(0, joined.text[chars], calls, token_ids=token_ids, logprobs=logprobs)
