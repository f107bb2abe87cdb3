"""Background responses, which are generated without a client and may be continued by another replica.

A stream in the foreground becomes one if this replica stops before its end.
"""

import asyncio
import logging
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ....engine import ConstraintLostError, EngineDeadError, EngineStoppedError, QueueFullError, Request, id_bytes
from ...constraints.tool_calls import CallPiece
from ...database.errors import FencedError, StoreUnavailableError
from ...database.group_commit import WriteLoad
from ...errors.request_errors import ApiError, from_exception, stream_moved
from ...generation.admission import stored_json
from ...generation.delta import Delta, DeltaJoiner
from ...generation.generation import Generation
from ...generation.service import Service
from ...generation.spec import GenerationSpec
from ...http.responses import to_json
from ...text.chat_format import ConversationMessage
from . import response_table
from .body import ResponseBody
from .builder import NO_OUTPUT, TYPED_EVENTS, ResponsesBuilder, error_event
from .conversations import Turn
from .event_log import LogEnd, pack_delta
from .input_items import output_items
from .response_store import ResponseLog, ResponseStore
from .response_table import Job, ResponseRecord, pack

_UNSEEN_S: Final = 0.25
"""Seconds between two writes to a log whose events no client is following."""

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

    def unfinished(self, response: Mapping[str, Any], *, is_streamed: bool) -> ResponseRecord:
        """Returns the record of the response without output, for the background.

        Args:
          response: The response as clients receive it.
        """
        return ResponseRecord(
            self.tenant,
            self.id,
            bytes(to_json(response)),
            self.history,
            pack([]),
            is_background=True,
            is_streamed=is_streamed,
            is_running=True,
        )

    def job(self, service: Service, *, state_is_imported: bool) -> Job:
        """Returns what another replica needs to continue the response, except the log.

        Args:
          state_is_imported: Whether the prompt continues a state of another engine, which its tokens do not repeat.
        """
        seeded = self.body.model_copy(update={"background": True, "seed": self.spec.params[0].seed})
        request = seeded.model_dump_json(by_alias=True, exclude_unset=True, exclude={"input"}).encode()
        engine = None if state_is_imported else service.engine_identity
        return Job(service.model.identity, request, id_bytes(self.spec.prompts[0].token_ids), engine, self.turn)


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
            is_busy = self.is_adopted and isinstance(error, QueueFullError)
            is_for_others = is_busy or isinstance(error, EngineDeadError | ConstraintLostError)
            if not (is_for_others and await self.log.release(is_death=is_death(error))):
                failure = from_exception(error)
                if failure.status_code == 500:
                    _logger.error("a background response failed", exc_info=error)
                await self._end(encoded(self.builder.failure(failure)))

    async def _generate(self, generation: Generation) -> None:
        """Logs deltas, joined for up to `_UNSEEN_S` seconds if no client can follow their events."""
        builder, now, unlogged = self.builder, asyncio.get_running_loop().time, DeltaJoiner()
        logged_at, last = now(), list[bytes]()
        with suppress(StopAsyncIteration):
            while True:
                newest = await generation.next_within(_UNSEEN_S)
                if newest is not None:
                    unlogged.add(newest)
                is_last = newest is not None and newest.finish_reason is not None
                is_due = self.log.is_streamed or is_last or newest is None or now() - logged_at >= _UNSEEN_S
                if not (unlogged and is_due):
                    continue
                delta, logged_at = unlogged.take(), now()
                last = encoded(builder.chunks(delta))
                if not is_last and (last or delta.token_ids):
                    await self.log.append(last, delta)
        await self._end([*last, *encoded(builder.closing())])

    async def _end(self, events: Sequence[bytes]) -> None:
        assert self.builder.ended is not None
        response, output = self.builder.ended
        await self.log.end(events, to_json(response), output, response["status"], output_items(response))


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
        self._sizes = DeltaSizes()
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
        self._sizes.add(delta)
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
        entry = LogEnd().entry(events, pack_delta(output) if num_tokens else b"", num_tokens)
        record = prepared.unfinished(self.response("in_progress", background=True), is_streamed=True)
        job = prepared.job(service, state_is_imported=self._state_is_imported)
        log = await self._responses.open(record, job, entry, is_left=True)
        log.hold(self._task)
        return log

    def _events(self, output: Delta) -> list[bytes]:
        """Returns all events so far. The same deltas produce the same events again."""
        again = ResponsesBuilder(self._body, self._model, self._spec, None, self.id, self._created)
        chunks = list(again.opening())
        for delta in self._sizes.split(output):
            chunks += again.chunks(delta)
        return [TYPED_EVENTS.encode(chunk) for chunk in chunks]


class DeltaSizes:
    """Sizes of joined deltas, by which they can be split again. Most deltas take eight bytes."""

    def __init__(self) -> None:
        self._num_tokens = array("I")
        self._num_chars = array("I")
        self._calls: dict[int, tuple[CallPiece, ...]] = {}

    def add(self, delta: Delta) -> None:
        """Records the size of the next delta."""
        if delta.calls:
            self._calls[len(self._num_tokens)] = delta.calls
        self._num_tokens.append(len(delta.token_ids))
        self._num_chars.append(len(delta.text))

    def split(self, joined: Delta) -> Iterator[Delta]:
        """Yields the deltas that were joined: their texts, tokens, log-probabilities and calls."""
        token = char = 0
        for number, (num_tokens, num_chars) in enumerate(zip(self._num_tokens, self._num_chars, strict=True)):
            tokens, chars = slice(token, token + num_tokens), slice(char, char + num_chars)
            token, char = tokens.stop, chars.stop
            yield Delta(
                0,
                text=joined.text[chars],
                calls=self._calls.get(number, ()),
                token_ids=joined.token_ids[tokens],
                logprobs=joined.logprobs[tokens],
            )
