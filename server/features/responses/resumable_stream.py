"""Streams of stored responses, which other replicas continue if this one stops before their end."""

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from ....engine import EngineDeadError, EngineStoppedError
from ...constraints.tool_calls import CallPiece
from ...errors.request_errors import ApiError, stream_moved
from ...generation.delta import Delta
from ...generation.service import Service
from ...generation.spec import GenerationSpec
from ...http.responses import to_json
from ...tenants import tenant
from ...text.chat_format import ConversationMessage
from .background_responses import is_death, job_of
from .body import ResponseBody
from .builder import TYPED_EVENTS, ResponsesBuilder
from .conversation_table import Turn
from .event_table import LogEntry, pack_delta
from .part_table import pack
from .response_store import ResponseLog, ResponseStore
from .response_table import ResponseRecord


class ResumableBuilder(ResponsesBuilder):
    """Builds the events of a stream that other replicas with the same database can continue.

    A response in the foreground is stored at its end. If the engine stops before, its request, tokens and events are
    stored, and it becomes a background response, which another replica adopts. The stream ends with an error that says
    how to follow it there.

    Args:
      responses: The service's store.
      spec: Spec of the body.
      history: Messages before the response's own, from `pack`.
      keep: Stores the final response and its message before the client gets them.
      response_id: Id of the response.
      turn: Turn in its conversation; None if it has none.
    """

    def __init__(
        self,
        body: ResponseBody,
        service: Service,
        responses: ResponseStore,
        spec: GenerationSpec,
        history: bytes,
        keep: Callable[[dict[str, Any], ConversationMessage], Awaitable[None]],
        response_id: str | None = None,
        turn: Turn | None = None,
    ) -> None:
        super().__init__(body, service.model, spec.prompts[0], spec.params[0], keep, response_id=response_id)
        state = service.restored_state(spec, spec.prompts[0])
        self._state_is_imported = state is not None and state.state.is_imported
        self._turn = turn
        self._service = service
        self._responses = responses
        self._history = history
        self._tenant = tenant.get()
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
        detail = stream_moved(resume).body["error"]
        about = {"code": detail["code"], "message": detail["message"], "param": None}
        yield {"type": "error", "sequence_number": last, **about, "response_id": self.id, "resume": resume}

    def close(self) -> None:
        self._responses.streams.discard(self.hand_over)

    async def _store(self, output: Delta) -> ResponseLog:
        """Stores the response with its log. This replica owns it until the stream's task ends.

        Args:
          output: All of its deltas, joined.
        """
        assert self._task is not None
        events = await self._service.workers.run(lambda: self._events(output))
        response = bytes(memoryview(to_json({**self.in_progress(), "background": True})))
        record = ResponseRecord(
            self._tenant,
            self.id,
            response,
            self._history,
            pack([]),
            is_background=True,
            is_streamed=True,
            is_running=True,
        )
        num_tokens = len(output.token_ids)
        delta = pack_delta(output) if num_tokens else b""
        entry = LogEntry(0, 0, len(events), 0, num_tokens, delta, b"".join(events))
        body = self._body.model_copy(update={"background": True})
        prompt_ids, is_imported = self._prompt.token_ids, self._state_is_imported
        job = job_of(body, prompt_ids, self._params, self._service, self._turn, state_is_imported=is_imported)
        return await self._responses.hand_over(record, job, entry, self._task)

    def _events(self, output: Delta) -> list[bytes]:
        """Returns all events so far. The same deltas produce the same events again."""
        again = ResponsesBuilder(self._body, self._model, self._prompt, self._params, pending=self.in_progress())
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
