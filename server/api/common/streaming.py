"""A stream from its first byte to its last: events, signs of life between them, an end that tells how it ended."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from types import MappingProxyType
from typing import Any, Final

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ...errors import from_exception
from ...generation.delta import Delta
from ...generation.generation import Generation
from ...http_requests import until_disconnect
from ...tenancy.workers import Workers
from .responding import AnswerWriter

_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_logger = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """A response that gives its resources back whatever happens, above all when the client goes away.

    Args:
      resources: the generation that the events tell of, and what depends on it.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], resources: AsyncExitStack) -> None:
        super().__init__(events, headers=_HEADERS)
        self._events = events
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._resources, aclosing(self._events):
                await until_disconnect(receive, self.stream_response(send))
        except ClientDisconnect:
            _logger.debug("the client closed the stream")


async def first_delta(generation: Generation, patience_s: float) -> Delta | None:
    """The first delta, or None if it takes longer. What fails this early can still be answered with a status.

    Raises:
      Exception: whatever the generation raised.
    """
    try:
        async with asyncio.timeout(patience_s):
            return await anext(generation)
    except TimeoutError:
        return None


async def stream_events(
    generation: Generation,
    first: Delta | None,
    writer: AnswerWriter,
    keep_alive_s: float | None,
    workers: Workers | None = None,
    report: Mapping[str, Any] = MappingProxyType({}),
) -> AsyncGenerator[bytes]:
    """All bytes of a stream. If the generation fails in between, it ends with what the writer says of that.

    Args:
      first: the delta that has been taken from the generation already, if one has.
      keep_alive_s: how long the stream may be silent, though tokens without text may come; None where nobody would hear
        a sign of life.
      workers, report: see `_Encoder`.
    """
    patience_s = math.inf if keep_alive_s is None else keep_alive_s
    encoder, framing, now = _Encoder(writer, workers, report), writer.framing, asyncio.get_running_loop().time
    try:
        for chunk in writer.opening():
            yield encoder.encode(chunk)
        if first is not None:
            for event in await encoder.encode_delta(first):
                yield event
        silent_since = now()
        while True:
            try:
                delta = await generation.next_within(keep_alive_s)
            except StopAsyncIteration:
                break
            events = [] if delta is None else await encoder.encode_delta(delta)
            if not events and (delta is None or now() - silent_since >= patience_s):
                events = [framing.pause]
            for event in events:
                yield event
            if events:
                silent_since = now()
        for chunk in writer.closing():
            yield encoder.encode(chunk)
        yield framing.end
    except Exception as error:
        answer = from_exception(error)
        if answer.status_code == 500:
            _logger.exception("a stream failed")
        for chunk in writer.failing(answer):
            yield encoder.encode(chunk)


class _Encoder:
    """Encodes a stream's chunks.

    Args:
      workers: write chunks that repeat much of a prompt.
      report: further fields of the first chunk.
    """

    def __init__(self, writer: AnswerWriter, workers: Workers | None, report: Mapping[str, Any]) -> None:
        self._writer = writer
        self._workers = workers
        self._report = report

    def encode(self, chunk: Mapping[str, Any]) -> bytes:
        return self._writer.framing.encode(self._reported(chunk))

    async def encode_delta(self, delta: Delta) -> list[bytes]:
        """The events that tell of a delta."""
        if self._workers is None or not self._writer.repeats_much(delta):
            return [self.encode(chunk) for chunk in self._writer.chunks(delta)]
        encode = self._writer.framing.encode_large
        return await self._workers.run(lambda: [encode(self._reported(chunk)) for chunk in self._writer.chunks(delta)])

    def _reported(self, chunk: Mapping[str, Any]) -> Mapping[str, Any]:
        if not self._report:
            return chunk
        report, self._report = self._report, {}
        return {**chunk, **report}
