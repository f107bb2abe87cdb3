"""Server-sent events: a line per chunk, a comment when nothing happens, an end that tells how it ended."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import orjson
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .answers import AnswerWriter
from .disconnect import until_disconnect
from .errors import from_exception
from .generation import Delta, Generation

KEEP_ALIVE: Final = b": keep-alive\n\n"
DONE: Final = b"data: [DONE]\n\n"

_HEADERS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}

_logger = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """A response that closes its generation whatever happens, above all when the client goes away.

    Args:
      generation: what the events tell of.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], generation: Generation) -> None:
        super().__init__(events, headers=_HEADERS)
        self._events = events
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._generation), aclosing(self._events):
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
    generation: Generation, first: Delta | None, writer: AnswerWriter, keep_alive_s: float
) -> AsyncGenerator[bytes]:
    """All bytes of a stream. It ends with `[DONE]`, or with an error event if the generation fails in between.

    Args:
      first: the delta that has been taken from the generation already, if one has.
      keep_alive_s: how long the stream may be silent before a comment tells proxies and people that it is alive.
    """
    try:
        for chunk in writer.opening():
            yield event(chunk)
        if first is not None:
            for chunk in writer.chunks(first):
                yield event(chunk)
        async for delta in _with_pauses(generation, keep_alive_s):
            if delta is None:
                yield KEEP_ALIVE
                continue
            for chunk in writer.chunks(delta):
                yield event(chunk)
        for chunk in writer.closing():
            yield event(chunk)
        yield DONE
    except Exception as error:
        answer = from_exception(error)
        if answer.status_code == 500:
            _logger.exception("a stream failed")
        yield event(answer.body)


def event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def _with_pauses(generation: Generation, pause_s: float) -> AsyncGenerator[Delta | None]:
    """The deltas, and None whenever the next one takes longer than `pause_s`."""
    while True:
        try:
            async with asyncio.timeout(pause_s):
                delta = await anext(generation)
        except TimeoutError:
            yield None
        except StopAsyncIteration:
            return
        else:
            yield delta
