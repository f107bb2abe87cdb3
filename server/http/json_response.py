"""JSON responses, encoded on a worker thread and sent in slices if they are large."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import Response
from starlette.types import Receive, Scope, Send

from ..generation.admission import admission
from ..generation.service import Service
from .response_parts import large_to_json, to_json

MANY_VALUES: Final = 1024
"""Number of tokens and alternatives above which a response takes some milliseconds to encode."""

_SLICE: Final = 256 * 2**10
"""Number of bytes that are passed to a connection at a time."""


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
