"""Requests to the application from this process, without a socket."""

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from ..generation.admission import Admission
from .middleware import ADMISSION


@dataclass(frozen=True, slots=True)
class InProcessResponse:
    """A whole response.

    Attributes:
      status: HTTP status.
      headers: Headers.
      body: Body.
    """

    status: int
    headers: Headers
    body: bytes


async def post_json(app: ASGIApp, path: str, body: bytes, own: Admission | None = None) -> InProcessResponse:
    """Sends JSON to an application, and returns its response. Cancelling it acts like a client's disconnect.

    Args:
      path: Path of the route.
      body: JSON of the body.
      own: Admission of the work; None lets the application open one.
    """
    exchange = _Exchange(body)
    scope = _scope(path, len(body)) | ({} if own is None else {ADMISSION: own})
    await app(scope, exchange.receive, exchange.send)
    return exchange.response()


def _scope(path: str, num_bytes: int) -> dict[str, Any]:
    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(num_bytes)}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": Headers(headers).raw,
        "client": None,
        "server": None,
    }


class _Exchange:
    """The two channels of a request."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = 0
        self._headers = Headers()
        self._pieces: list[bytes] = []

    async def receive(self) -> Message:
        """Returns the body on the first call. Later calls never return, since this client stays connected."""
        body, self._body = self._body, None
        if body is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], Headers(raw=message["headers"])
        else:
            self._pieces.append(message.get("body", b""))

    def response(self) -> InProcessResponse:
        return InProcessResponse(self._status, self._headers, b"".join(self._pieces))
