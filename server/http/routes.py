"""Routes: the service that they depend on, strict parsing of JSON bodies, and HEAD and OPTIONS on every path."""

from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import kinds
from ..errors.request_errors import ApiError
from ..generation.admission import admission
from ..generation.service import Service
from ..schemas.body import BodyCheck, JsonObject
from .error_responses import refusal

_METHODS: Final = ("DELETE", "GET", "POST")


async def _service(request: Request) -> Service:
    return request.app.state.service


async def _ready_service(request: Request) -> Service:
    service = await _service(request)
    if not service.engine.is_ready:
        service.check_alive()
        progress = f" ({text})" if (text := service.loading()) else ""
        message = f"the model is still loading{progress}: GET /health/ready is 200 once it is ready"
        raise ApiError(kinds.MODEL_LOADING, message)
    return service


AnyService = Annotated[Service, Depends(_service)]
"""Service of routes that respond in every phase of the lifecycle."""

ReadyService = Annotated[Service, Depends(_ready_service)]
"""Service of routes that need the model: 503 while it loads and when the engine is dead."""


class JsonRoute(APIRoute):
    """Parses JSON more strictly than Python: no NaN, no lone surrogates, no nesting deeper than 201. Checks the query.

    The body is validated and checked before FastAPI sees it, so that a worker thread can do it and only the model stays
    in memory.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        model: Any = None if self.body_field is None else self.body_field.field_info.annotation
        known = frozenset(param.alias for param in self.dependant.query_params)

        async def handle_json(request: Request) -> Response:
            refuse_encoding(request.headers)
            if request.scope["query_string"]:
                request.app.state.check_body.check_query(request.query_params, known)
            return await handle(_JsonRequest(request, model))

        return handle_json


class _JsonRequest(Request):
    """A request whose body is parsed on first use.

    Args:
      request: Request from Starlette.
      model: Model of the body; None if the route has no body.
    """

    def __init__(self, request: Request, model: type[JsonObject] | None) -> None:
        super().__init__(request.scope, request.receive)
        self._model = model
        self._raw = bytearray()

    async def body(self) -> bytes:
        """Reads the body and returns its first byte.

        FastAPI only tests whether there is a body, but keeps the returned bytes until the response ends.
        """
        async for chunk in self.stream():
            self._raw += chunk
        return bytes(self._raw[:1])

    async def json(self) -> Any:
        raw, self._raw = self._raw, bytearray()
        return await admission.get().parse(raw, partial(_built, self._model, self.app.state.check_body))


def refuse_encoding(headers: Headers) -> None:
    """Checks that a request's body is not compressed.

    Raises:
      ApiError: The `content-encoding` header names an encoding.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"content-encoding {encoding[:60]!r} is not supported: send the body uncompressed"
        raise ApiError(kinds.BODY_ENCODED, message)


def _built(model: type[JsonObject] | None, check: BodyCheck, parsed: Any) -> Any:
    """Returns a body as its model.

    Raises:
      ApiError: The body does not fit the model, or does not pass the check.
    """
    if model is None:
        return parsed
    body = _validated(parsed, model)
    check(body)
    return body


def _validated(parsed: Any, model: type[JsonObject]) -> JsonObject:
    try:
        return model.model_validate(parsed)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise refusal(detail, detail["loc"], parsed) from None


class HeadAndOptions:
    """Middleware that responds to HEAD like GET without the body, and to OPTIONS with the methods of a path.

    Load balancers probe with them.

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
    """Sends a response's head without the body. The application then sees a client that disconnected."""

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
