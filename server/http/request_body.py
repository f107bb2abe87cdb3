"""Limits on the bodies of requests, and the memory that requests hold until they end."""

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors.request_errors import body_too_large
from ..tenancy.request_memory import ByteBudget, RequestMemory, request_memory
from .error_responses import send_error

MAX_BODY_BYTES: Final = 4 * 2**20
"""Default maximum size of a body: a prompt of about a million tokens as text, or half a million token ids."""

_MAX_RAW_BODIES: Final = 32
"""Number of bodies of the maximum size that may be received at the same time."""

MAX_KEPT_BYTES: Final = 2**30
"""Default bytes that all open requests may hold: parsed bodies, prompts, and what responses repeat of them.

A parsed body may take thirty times its size; most take about their own size.
"""

_LARGEST_REQUESTS: Final = 4
"""Number of requests that may hold as much as the largest body can grow to."""

_GROWTH: Final = 64
"""Maximum ratio of a request's memory (parsed values and prompt token ids) to the size of its body."""


def kept_budget(max_body_bytes: int, max_kept_bytes: int = MAX_KEPT_BYTES) -> int:
    """Returns the bytes that all open requests may hold: `max_kept_bytes`, or more if one body could grow to more."""
    return max(max_kept_bytes, _LARGEST_REQUESTS * _GROWTH * max_body_bytes)


class BodyLimit:
    """Refuses bodies that exceed the maximum size, or that the shared memory budgets have no room for.

    Bytes of a body are returned to their budget once it has been parsed; bytes of the parsed request once the response
    has ended.

    Args:
      app: Wrapped application.
      max_bytes: Maximum bytes of one body.
      exempt_paths: Paths whose routes limit bodies themselves.
      tenants: Number of tenants that share the budgets.
      max_kept_bytes: Maximum bytes that all requests hold together; raised if one body could grow to more.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int = MAX_BODY_BYTES,
        exempt_paths: Collection[str] = (),
        tenants: int = 1,
        max_kept_bytes: int = MAX_KEPT_BYTES,
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._raw = ByteBudget(_MAX_RAW_BODIES * max_bytes, tenants)
        self._kept = ByteBudget(kept_budget(max_bytes, max_kept_bytes), tenants)
        self._exempt_paths = exempt_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt_paths:
            request_memory.set(None)  # a pipelined request starts in the context of the previous one
            await self._app(scope, receive, send)
            return
        if _content_length(scope) > self._max_bytes:
            await send_error(body_too_large(self._max_bytes), scope, receive, send)
            return
        memory, num_bytes = RequestMemory(self._raw, self._kept), 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise body_too_large(self._max_bytes)
            memory.receive(len(message.get("body", b"")))
            return message

        request_memory.set(memory)
        try:
            await self._app(scope, limited, send)
        finally:
            memory.release()


def _content_length(scope: Scope) -> int:
    """Returns the body's size according to its header, or 0 without one."""
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() else 0
