"""Parts of responses: the fields that several endpoints share, and their encoding as JSON and events.

Large JSON is encoded on a worker thread and sent in slices.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from ..generation.admission import admission
from ..generation.service import Service

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


class SlicedResponse(Response):
    """A large JSON response, sent in slices so that its memory stays charged until the client has received it."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, len(body), _SLICE):
            await send({"type": "http.response.body", "body": bytes(body[start : start + _SLICE]), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def json_response(content: Any) -> Response:
    """Returns a response with this content."""
    return Response(to_json(content), media_type="application/json")


async def made_json_response(service: Service, make: Callable[[], Any], *, num_values: int = 0) -> Response:
    """Returns a response with the content from `make`. Large content is built on a worker thread.

    Args:
      num_values: Number of tokens and alternatives that were generated for the content.
    """
    if admission.get().is_large or num_values >= MANY_VALUES:
        return SlicedResponse(await service.workers.run(lambda: large_to_json(make())))
    return json_response(make())
