"""A large response that is handed over in slices: no faster than its client reads."""

from typing import Final

from fastapi import Response
from starlette.types import Receive, Scope, Send

_SLICE: Final = 256 * 2**10
"""Bytes handed over at a time."""


class SlicedResponse(Response):
    """JSON. Whoever sends it has it for as long as the client needs, so that its memory stays booked."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = memoryview(self.body)
        for start in range(0, len(body), _SLICE):
            await send({"type": "http.response.body", "body": bytes(body[start : start + _SLICE]), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
