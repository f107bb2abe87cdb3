"""Limits on the bodies of requests, and the admission of each request."""

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors.request_errors import body_too_large
from ..generation.admission import Admission, admission
from ..generation.admissions import Admissions
from .error_responses import send_error

ADMISSION: Final = "roost.admission"
"""Key of an ASGI scope with the admission of work that a server sends to itself. Outside requests cannot set it."""


_FLAG: Final = "--max-body-bytes"


class BodyLimit:
    """Opens the admission of each request, and refuses bodies that exceed the maximum size or the budgets.

    Lines of batches bring their admission, and wait until they fit into the budgets.

    A body's bytes are released after it has been parsed; the bytes of the parsed request after the response has ended.

    Args:
      app: Wrapped application.
      admissions: Admissions of the server.
      exempt_paths: Paths whose routes limit bodies themselves.
    """

    def __init__(self, app: ASGIApp, admissions: Admissions, exempt_paths: Collection[str] = ()) -> None:
        self._app = app
        self._admissions = admissions
        self._max_bytes = admissions.max_body_bytes
        self._exempt_paths = exempt_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt_paths:
            admission.set(self._admissions.unbounded())  # replaces that of the connection's earlier request
            await self._app(scope, receive, send)
            return
        if _content_length(scope) > self._max_bytes:
            await send_error(body_too_large(self._max_bytes, _FLAG), scope, receive, send)
            return
        given: Admission | None = scope.get(ADMISSION)
        own, num_bytes = given or self._admissions.open(), 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes, _FLAG)
            own.receive(len(message.get("body", b"")))
            return message

        admission.set(own)
        try:
            await own.begin()
            await self._app(scope, limited, send)
        finally:
            await own.settle()
            if given is None:
                own.release()


def _content_length(scope: Scope) -> int:
    """Returns the body's size according to its header, or 0 without one."""
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() else 0
