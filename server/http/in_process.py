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
    status, headers, pieces, unread = 0, Headers(), list[bytes](), [body]

    async def receive() -> Message:
        if not unread:
            await asyncio.Event().wait()  # this client stays connected
        return {"type": "http.request", "body": unread.pop(), "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], Headers(raw=message["headers"])
        else:
            pieces.append(message.get("body", b""))

    await app(_scope(path, len(body)) | ({} if own is None else {ADMISSION: own}), receive, send)
    return InProcessResponse(status, headers, b"".join(pieces))


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
