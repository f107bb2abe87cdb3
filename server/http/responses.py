"""Responses: JSON, large JSON in slices, and streams of server-sent events, built from the deltas of a generation."""

import asyncio
import json
import logging
from abc import ABC, abstractmethod
from array import array
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from ..database.errors import StoreUnavailableError as StoreError
from ..errors.request_errors import ApiError, from_exception, log_reason
from ..generation.admission import admission
from ..generation.delta import Delta
from ..generation.generation import Generation, collect
from ..generation.service import Service
from ..generation.spec import GenerationSpec
from ..observability.logging import error_reason

_DEPTH: Final = 5
"""Depth to which lists are written in slices: response, choices, choice, log-probabilities, list by token."""

_ENTRIES: Final = 512
"""Number of entries of a long list that are written at a time."""

KEEP_ALIVE: Final = b": keep-alive\n\n"

DONE: Final = b"data: [DONE]\n\n"

MANY_VALUES: Final = 1024
"""Number of tokens and alternatives above which a response takes some milliseconds to encode."""

_SLICE: Final = 256 * 2**10
"""Number of bytes that are passed to a connection at a time."""

FIRST_TOKEN_TIMEOUT_S: Final = 1.0
"""Seconds for which a stream waits for its first token before it sends status 200. A full queue is reported before
that."""

_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}

CYCLE: Final = "roost.cycle"
"""Key of an ASGI scope with uvicorn's request and response, for `BodyWriter`."""

_logger = logging.getLogger(__name__)


def to_json(value: Any) -> bytes:
    """Returns the JSON of a value, which may contain packed token ids."""
    try:
        return orjson.dumps(value, _unpacked)
    except TypeError:  # an integer of more than 64 bits, which the client sent and gets back
        return json.dumps(value, default=_unpacked).encode()


def _unpacked(value: Any) -> list[int]:
    if isinstance(value, memoryview):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON")


def large_to_json(value: Any) -> bytes:
    """Returns the same as `to_json`, but lets other threads run between slices."""
    written = bytearray()
    _write(written, value, 0)
    return bytes(written)


def _write(written: bytearray, value: Any, depth: int) -> None:
    is_list = isinstance(value, list | tuple | memoryview)
    if depth < _DEPTH and isinstance(value, dict):
        for place, (key, each) in enumerate(value.items()):
            written += (b"," if place else b"{") + to_json(key) + b":"
            _write(written, each, depth + 1)
        written += b"}" if value else b"{}"
    elif depth < _DEPTH and is_list and len(value) > _ENTRIES:
        for start in range(0, len(value), _ENTRIES):
            written += b"," if start else b"["
            written += to_json(value[start : start + _ENTRIES])[1:-1]
        written += b"]"
    elif depth < _DEPTH and is_list:
        for place, each in enumerate(value):
            written += b"," if place else b"["
            _write(written, each, depth + 1)
        written += b"]" if value else b"[]"
    else:
        written += to_json(value)


def json_response(content: Any) -> Response:
    """Returns a response with this content."""
    return Response(to_json(content), media_type="application/json")


async def made_json_response(make: Callable[[], Any], *, num_values: int = 0) -> Response:
    """Returns a response with the content from `make`. Large content is built on a worker thread.

    Args:
      num_values: Number of tokens and alternatives that were generated for the content.
    """
    own = admission.get()
    if own.is_large or num_values >= MANY_VALUES:
        return SlicedResponse(await own.run(lambda: large_to_json(make()), is_long=True))
    return json_response(make())


class SlicedResponse(Response):
    """A large JSON response, sent in slices so that its memory stays charged until the client has received it."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, len(body), _SLICE):
            await send({"type": "http.response.body", "body": bytes(body[start : start + _SLICE]), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True, slots=True)
class SseEncoder:
    """Encodes events.

    Attributes:
      is_named: Whether an event's type is also sent as the SSE field `event`.
      keep_alive: Bytes that a silent stream sends, so that proxies and clients see that it is alive.
      end: Bytes after the last event of a stream that ended without an error.
    """

    is_named: bool
    keep_alive: bytes = KEEP_ALIVE
    end: bytes = b""

    def encode(self, event: Mapping[str, Any], write: Callable[[Any], bytes] = to_json) -> bytes:
        """Returns the bytes of an event.

        Args:
          write: Returns the JSON of the event; `large_to_json` on worker threads.
        """
        data = b"data: " + write(event) + b"\n\n"
        return b"event: " + event["type"].encode() + b"\n" + data if self.is_named else data


CHUNKS: Final = SseEncoder(is_named=False, end=DONE)
"""Encoder of OpenAI's chat completions and completions."""


class ResponseBuilder(ABC):
    """Builds one response from deltas, either whole or as the chunks of a stream.

    Attributes:
      id: Id of the response, by which clients and the engine know it.
      sse: Encoder of the chunks.
    """

    id: str
    sse: SseEncoder = CHUNKS

    @abstractmethod
    def whole(self, choices: Sequence[Delta]) -> Mapping[str, Any]:
        """Returns the response to a request that does not stream."""

    async def finish(self) -> None:  # noqa: B027 - most builders have nothing to do
        """Runs on the event loop before the response, or a stream's last chunks, are encoded. It may change them.

        If it fails, the client gets its error instead, and the response does not count as usage.
        """

    def repeats_prompt(self, delta: Delta) -> bool:
        """Returns whether the chunks of a delta repeat its prompt. If that is large, a worker thread builds them."""
        return False

    def order(self, choices: Sequence[Delta]) -> Sequence[int]:
        """Returns the indices of the choices that `whole` returns, in the order of the response."""
        return range(len(choices))

    def opening(self) -> Iterator[Mapping[str, Any]]:
        """Yields the chunks before any token."""
        yield from ()

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[Mapping[str, Any]]:
        """Yields the chunks of a delta; none if there is nothing to report yet."""

    def text_event(self, index: int, text: str, num_tokens: int) -> bytes | None:
        """Returns the event of a delta that has only text, if it differs from the choice's other events only by its
        text.

        This is faster than `chunks`, and counts the delta as `chunks` does. Returns None, and counts nothing, for all
        other deltas.

        Args:
          index: Index of the choice.
          text: New text.
          num_tokens: Number of new tokens.
        """
        return None

    def closing(self) -> Iterator[Mapping[str, Any]]:
        """Yields the remaining chunks after the end of the last choice."""
        yield from ()

    async def interrupt(self, error: Exception) -> None:  # noqa: B027 - most builders have nothing to do
        """Runs before `failure`. A builder may leave its response to another server.

        Args:
          error: Error of the generation.
        """

    def failure(self, error: ApiError) -> Iterator[Mapping[str, Any]]:
        """Yields the chunks that end a stream with an error."""
        yield error.body

    def close(self) -> None:  # noqa: B027 - most builders have nothing to do
        """Runs when a stream has ended, with or without an error."""


class BodyWriter:
    """Writes chunks of a response directly to its connection, without the cost of middleware and `send` coroutines.

    Args:
      cycle: The request and its response.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def is_open(self) -> bool:
        """Whether the response has started and not ended, and the connection accepts writes."""
        cycle = self._cycle
        is_sending = cycle.response_started and not cycle.response_complete and cycle.chunked_encoding
        return bool(is_sending) and not cycle.flow.write_paused and not cycle.disconnected

    def write(self, data: bytes) -> None:
        """Writes a chunk; `is_open` must be true."""
        self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


async def respond(
    service: Service,
    request: Request,
    spec: GenerationSpec,
    builder: ResponseBuilder,
    *,
    stream: bool,
) -> Response:
    """Generates for as long as the client stays connected.

    Raises:
      ApiError: The spec cannot be generated, or the engine refused a choice before anything was sent.
      ClientDisconnect: The client disconnected before the response began.
    """
    async with AsyncExitStack() as resources:
        await resources.enter_async_context(until_disconnect(request.receive))
        generation = await resources.enter_async_context(service.generation(builder.id, spec))
        if not stream:
            return await _whole(generation, builder)
        first = await generation.next_within(FIRST_TOKEN_TIMEOUT_S)  # an error before it still sets the status
        cycle = request.scope.get(CYCLE)
        writer = None if cycle is None else BodyWriter(cycle)
        events = stream_events(generation, first, builder, service.limits.keep_alive_s, writer)
        return EventStream(events, resources.pop_all())  # the response closes them


async def _whole(generation: Generation, builder: ResponseBuilder) -> Response:
    choices = await collect(generation)
    generation.sent.order = array("i", builder.order(choices))
    num_values = sum(_num_values(choice) for choice in choices)
    whole = await admission.get().run(lambda: builder.whole(choices), is_long=num_values >= MANY_VALUES)
    await _finish(generation, builder)
    return await made_json_response(lambda: whole, num_values=num_values)


async def _finish(generation: Generation, builder: ResponseBuilder) -> None:
    try:
        await builder.finish()
    except Exception:
        generation.discard()
        raise


def _num_values(choice: Delta) -> int:
    """Returns the number of tokens of a choice, and of their alternatives."""
    return len(choice.token_ids) + sum(len(entry.top) + len(entry.named) for entry in choice.logprobs)


async def stream_events(
    generation: Generation,
    first: Delta | None,
    builder: ResponseBuilder,
    keep_alive_s: float,
    writer: BodyWriter | None = None,
) -> AsyncGenerator[bytes]:
    """Yields the bytes of a stream. If the generation fails, the stream ends with the builder's chunks about the error.

    Args:
      first: Delta that was already taken from the generation.
      keep_alive_s: Seconds for which the stream may be silent, even if tokens without text arrive.
      writer: Takes events of text while the stream waits, so that no task is woken for them.
    """
    now, own = asyncio.get_running_loop().time, admission.get()
    silent_since = now()

    def encode(chunks: Iterable[Mapping[str, Any]], write: Callable[[Any], bytes] = to_json) -> list[bytes]:
        return [builder.sse.encode(chunk, write) for chunk in chunks]

    async def encode_delta(delta: Delta) -> list[bytes]:
        if own.is_large and builder.repeats_prompt(delta):
            return await own.run(lambda: encode(builder.chunks(delta), large_to_json))
        return encode(builder.chunks(delta))

    def write_text(index: int, text: str, num_tokens: int) -> bool:
        nonlocal silent_since
        if writer is None or not writer.is_open:
            return False
        if (event := builder.text_event(index, text, num_tokens)) is None:
            return False
        writer.write(event)
        silent_since = now()
        return True

    try:
        for event in encode(builder.opening()):
            yield event
        if first is not None:
            for event in await encode_delta(first):
                yield event
        silent_since = now()
        while True:
            try:
                delta = await generation.next_within(max(silent_since + keep_alive_s - now(), 0), write_text)
            except StopAsyncIteration:
                break
            events = [] if delta is None else await encode_delta(delta)
            if not events and now() - silent_since >= keep_alive_s:
                events = [builder.sse.keep_alive]
            for event in events:
                yield event
            if events:
                silent_since = now()
        chunks = list(builder.closing())
        await _finish(generation, builder)
        for event in encode(chunks):
            yield event
        yield builder.sse.end
    except Exception as error:
        api_error = from_exception(error)
        error_reason.get([]).append(log_reason(api_error))
        if api_error.status_code == 500:
            _logger.exception("a stream failed")
        with suppress(StoreError):  # the client gets the first error
            await builder.interrupt(error)
        chunks = list(builder.failure(api_error))
        with suppress(StoreError, ApiError):
            await builder.finish()
        for event in encode(chunks):
            yield event
    finally:
        builder.close()


class EventStream(StreamingResponse):
    """A stream that releases its resources at its end, including when the client disconnects.

    Args:
      resources: What the events depend on, `until_disconnect` and a generation among it.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], resources: AsyncExitStack) -> None:
        super().__init__(events, headers=_HEADERS)
        self._events = events
        self._resources = resources

    def hold(self, resources: AsyncExitStack) -> None:
        """Releases further resources when the stream has ended."""
        self._resources.push_async_exit(resources)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events. Starlette's method also checks the type of each event, which is slow."""
        try:
            async with self._resources, aclosing(self._events):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for event in self._events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            _logger.debug("the client closed the stream")


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncGenerator[None]:
    """Cancels the `with` block when the client disconnects, which uvicorn does not do.

    Args:
      receive: ASGI channel of the request, whose body must have been read.

    Raises:
      ClientDisconnect: The client disconnected, and the block was cancelled.
    """
    task, is_gone = asyncio.current_task(), False
    assert task is not None
    num_cancelled = task.cancelling()

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not is_gone or task.cancelling() > num_cancelled + 1:  # something else cancelled the task, too
            raise
        raise ClientDisconnect from None
    finally:
        if is_gone:
            task.uncancel()
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
