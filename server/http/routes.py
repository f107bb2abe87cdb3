"""Routes: the service that they depend on, and strict parsing of JSON bodies."""

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers

from ..errors import kinds
from ..errors.request_errors import ApiError
from ..generation.admission import admission
from ..generation.service import Service
from ..schemas.body import BodyCheck


async def _service(request: Request) -> Service:
    return request.app.state.service


async def _ready_service(request: Request) -> Service:
    service: Service = request.app.state.service
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
            if "content-encoding" in request.headers:
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

    def __init__(self, request: Request, model: Any) -> None:
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
        check: BodyCheck = self.app.state.check_body
        return await admission.get().parse(raw, partial(check.built, self._model))


def refuse_encoding(headers: Headers) -> None:
    """Checks that a request's body is not compressed.

    Raises:
      ApiError: The `content-encoding` header names an encoding.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"content-encoding {encoding[:60]!r} is not supported: send the body uncompressed"
        raise ApiError(kinds.BODY_ENCODED, message)
