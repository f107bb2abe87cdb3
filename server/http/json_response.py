"""JSON responses, encoded on a worker thread and sent in slices if they are large."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import Response
from starlette.types import Receive, Scope, Send

from ..generation.service import Service
from ..tenancy.request_memory import is_large
from .response_parts import large_to_json, to_json

_MANY_VALUES: Final = 1024
"""Number of tokens and alternatives of a response that take some milliseconds to write."""

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
