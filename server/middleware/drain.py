"""Refuses requests while the server shuts down."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from ..error_responses import send_error
from ..errors import shutting_down
from ..tenancy.open_requests import OpenRequests

_UNCOUNTED: Final = ("/health", "/health/ready", "/load", "/metrics", "/version")
"""Paths that are served until the end, and that shutdown does not wait for."""


class Drain:
    """Counts open requests, and refuses new ones once shutdown has closed the server.

    Args:
      app: Wrapped application.
      open_requests: Counter that lifecycle and middleware share.
    """

    def __init__(self, app: ASGIApp, open_requests: OpenRequests) -> None:
        self._app = app
        self._open_requests = open_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNCOUNTED:
            await self._app(scope, receive, send)
        elif self._open_requests.is_accepting:
            with self._open_requests.track():
                await self._app(scope, receive, send)
        else:
            await send_error(shutting_down(), scope, receive, send)
