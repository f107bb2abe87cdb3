"""JSON responses: orjson's bytes, written on a worker thread and sent in slices where they are large."""

import json
from collections.abc import Callable
from typing import Any, Final

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

from ...generation.service import Service
from ...tenancy.memory import is_large

_MANY_VALUES: Final = 1024
"""Number of tokens and alternatives of a response that take some milliseconds to write."""

_DEPTH: Final = 5
"""Depth down to which lists are written in slices: response, choices, choice, log-probabilities, list by token."""

_ENTRIES: Final = 512
"""Number of entries of a long list that are written at a time."""

_SLICE: Final = 256 * 2**10
"""Number of bytes that are handed to a connection at a time."""


class SlicedResponse(Response):
    """A large JSON response, sent in slices so that its memory stays booked until the client has it."""

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
    """Returns a response with the content that `make` returns; a large one is made on a worker thread.

    Args:
      num_values: Number of tokens and alternatives that were generated for the content.
    """
    if is_large() or num_values >= _MANY_VALUES:
        return SlicedResponse(await service.workers.run(lambda: large_to_json(make())))
    return json_response(make())


def to_json(value: Any) -> bytes:
    """Returns the JSON of a value."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer of more than 64 bits, which the client sent and gets back
        return json.dumps(value).encode()


def large_to_json(value: Any) -> bytes:
    """Returns the same as `to_json`, but releases the interpreter to other threads between slices."""
    written = bytearray()
    _write(written, value, 0)
    return bytes(written)


def _write(written: bytearray, value: Any, depth: int) -> None:
    is_list = isinstance(value, list | tuple)
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
