"""Responses to errors in the shape of each API, errors behind exceptions of FastAPI, and hints for wrong URLs."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ...engine import RoostError
from ..errors import kinds
from ..errors.request_errors import CLIENT_CLOSED_REQUEST, ApiError, from_exception, log_reason, refusal
from ..observability.logging import error_reason

_MAX_PATH: Final = 64
"""Maximum characters of a path without a route that are compared with paths that have one."""

_MIN_LIKENESS: Final = 0.82
"""Minimum ratio of `difflib` between a path and the one that was probably meant."""


class ErrorShape(NamedTuple):
    """Bodies of errors in another shape than OpenAI's.

    Attributes:
      prefix: Prefix of the paths whose errors have this shape.
      header: Header of requests whose errors have this shape on every path of `/v1`.
      body: Returns an error's body.
    """

    prefix: str
    header: str
    body: Callable[[ApiError], Any]


def error_response(error: ApiError, scope: Scope | None = None) -> Response:
    """Returns the response to an error, and logs its reason.

    Args:
      scope: Scope of the request, whose path and headers determine the shape; None if no request could be read.
    """
    error_reason.get([]).append(log_reason(error))
    return JSONResponse(_shaped(error, scope), error.status_code, error.headers)


def _shaped(error: ApiError, scope: Scope | None) -> Any:
    """Returns the body of an error in the shape of the API that a path belongs to, or that its client expects."""
    if scope is None or "app" not in scope:
        return error.body
    shapes: Sequence[ErrorShape] = scope["app"].state.error_shapes
    path, headers = scope["path"], Headers(scope=scope)
    is_api = path.startswith("/v1/")
    found = (each for each in shapes if path.startswith(each.prefix) or (is_api and each.header in headers))
    return next((shape.body(error) for shape in found), error.body)


async def send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends the response to an error from a middleware."""
    await error_response(error, scope)(scope, receive, send)


def install_error_handlers(app: FastAPI, shapes: Sequence[ErrorShape]) -> None:
    """Installs handlers of all known exceptions. A middleware handles unknown ones."""
    app.state.error_shapes = shapes
    for kind in (ApiError, HTTPException, RequestValidationError, RoostError):
        app.add_exception_handler(kind, _respond)
    app.add_exception_handler(ClientDisconnect, _no_response)


async def _respond(request: Request, error: Exception) -> Response:
    match error:
        case RequestValidationError():
            detail = error.errors()[0]
            api_error = refusal(detail, detail["loc"][1:], error.body)
        case HTTPException():
            api_error = _from_http(error, request)
        case _:
            api_error = from_exception(error)
    return error_response(api_error, request.scope)


def _from_http(error: HTTPException, request: Request) -> ApiError:
    """Returns the error for one of Starlette's errors: unknown route, unknown method, or unreadable body."""
    if isinstance(error.__cause__, ApiError):  # raised while FastAPI read the body
        return error.__cause__
    where = f" ({request.method} {request.url.path})"
    match error.status_code:
        case 404:
            hint = f": {_directions_to(request)}"
            return ApiError(kinds.NO_SUCH_URL, f"no such URL{where}{hint}", reason=f"no such URL{hint}")
        case 405:
            allowed = Headers(error.headers or {}).get("allow", "")
            methods = f"use {allowed.replace(', ', ' or ')}" if allowed else "GET /docs lists the endpoints"
            hint = f": {_hint_for_foreign_path(request) or methods}"
            message, reason = f"no such method here{where}{hint}", f"no such method here{hint}"
            return ApiError(kinds.WRONG_METHOD, message, headers=error.headers, reason=reason)
        case status:
            kind = kinds.INVALID_REQUEST if status < 500 else kinds.INTERNAL_ERROR
            return ApiError(kind, error.detail, headers=error.headers)


def _directions_to(request: Request) -> str:
    """Returns a hint about what to use instead of a path without a route."""
    path = request.scope["path"].lower().rstrip("/")
    hint = _hint_for_foreign_path(request)
    if hint is not None:
        return hint
    likely = get_close_matches(path[:_MAX_PATH], request.app.state.paths, n=1, cutoff=_MIN_LIKENESS)
    return f"use {request.scope.get('root_path', '')}{likely[0]}" if likely else "GET /docs lists the endpoints"


def _hint_for_foreign_path(request: Request) -> str | None:
    """Returns what to use instead of a path of another server; None if the path is no such one."""
    path = request.scope["path"].lower().rstrip("/") or "/"
    hint: str | None = request.app.state.foreign_paths.get(path)
    return None if hint is None else hint.replace("{root}", request.scope.get("root_path", ""))


async def _no_response(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
