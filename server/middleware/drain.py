"""Who comes in and who is inside: what has to end before the process may."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from ..error_responses import send_error
from ..errors import shutting_down

_ALWAYS: Final = ("/health", "/health/ready", "/load", "/metrics", "/version")
"""Answered until the end, and nothing to wait for."""


class Door:
    """Closed in two steps: first it is said that it will be, so that nobody is sent here any more; then it is.

    Attributes:
      is_leaving: the process is about to end.
      is_open: new requests are taken.
    """

    def __init__(self) -> None:
        self.is_leaving = False
        self.is_open = True
        self._num_inside = 0

    @property
    def is_empty(self) -> bool:
        """Whether no request is being answered."""
        return self._num_inside == 0

    @property
    def num_inside(self) -> int:
        """Number of requests that are being answered."""
        return self._num_inside

    @contextmanager
    def pass_through(self) -> Iterator[None]:
        """Somebody is inside until the end of the `with` block."""
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1


class Doorkeeper:
    """Refuses requests when the door is closed, and counts those inside. Plain ASGI."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            await self._app(scope, receive, send)
        elif self._door.is_open:
            with self._door.pass_through():
                await self._app(scope, receive, send)
        else:
            await send_error(shutting_down(), scope, receive, send)
