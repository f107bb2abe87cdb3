"""HEAD and OPTIONS for every path that has a route, since load balancers probe with them."""

from collections.abc import Iterable
from typing import Final

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS: Final = ("DELETE", "GET", "POST")


class HeadAndOptions:
    """Responds to HEAD like GET without the body, and to OPTIONS with the methods of a path.

    Args:
      app: Wrapped application.
      routes: Routes of the application; later additions count.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope.get("method")
        if method == "OPTIONS" and (methods := self._methods(scope)):
            allow = ", ".join(sorted({*methods, "OPTIONS"})).encode()
            await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", allow)]})
            await send({"type": "http.response.body", "body": b""})
        elif method == "HEAD" and "GET" in self._methods(scope):
            head = _HeadOnly(receive, send)
            await self._app({**scope, "method": "GET"}, head.receive, head.send)
        else:
            await self._app(scope, receive, send)

    def _methods(self, scope: Scope) -> set[str]:
        if scope["path"] == "*":
            return set(_METHODS)
        methods = {method for method in _METHODS if self._has_route({**scope, "method": method})}
        return methods | {"HEAD"} if "GET" in methods else methods

    def _has_route(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)


class _HeadOnly:
    """Sends a response's head without the body; the application then sees a client that disconnected."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_sent = False

    async def receive(self) -> Message:
        return {"type": "http.disconnect"} if self._is_sent else await self._receive()

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            return
        await self._send(message)
        await self._send({"type": "http.response.body", "body": b""})
        self._is_sent = True
