"""Responses to errors, in the shape of each API."""

from collections.abc import Mapping
from typing import Final, TypedDict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from ...engine import RoostError
from ..errors.kinds import ErrorKind
from ..errors.request_errors import CLIENT_CLOSED_REQUEST, ApiError, from_exception, from_http, log_reason
from ..observability.logging import error_reason, request_id

ANTHROPIC_PATH: Final = "/v1/messages"
"""Prefix of the paths of Anthropic's API."""

_API_ROOT: Final = "/v1"

_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicErrorDetail(TypedDict):
    """An error in Anthropic's shape."""

    type: str
    message: str


class AnthropicErrorBody(TypedDict):
    """Body of every status from 400 on, and event about an error in a stream, in Anthropic's shape."""

    type: str
    error: AnthropicErrorDetail
    request_id: str


def anthropic_type(status: int) -> str:
    """Returns Anthropic's class of the errors of an HTTP status."""
    return _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def anthropic_body(error: ApiError) -> AnthropicErrorBody:
    """Returns an error in Anthropic's shape. It has no place for the field that caused it, so the message names it."""
    detail = error.body["error"]
    message, param = detail["message"], detail["param"]
    return AnthropicErrorBody(
        type="error",
        error=AnthropicErrorDetail(
            type=anthropic_type(error.status_code),
            message=message if param is None or param in message else f"{param}: {message}",
        ),
        request_id=request_id.get(),
    )


def error_response(error: ApiError, path: str) -> Response:
    """Returns the response to an error, and logs its reason.

    Args:
      path: Path of the request, which decides the shape.
    """
    error_reason.get([]).append(log_reason(error))
    body = anthropic_body(error) if path.startswith(ANTHROPIC_PATH) else error.body
    return JSONResponse(body, error.status_code, error.headers)


async def send_error(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Sends the response to an error from a middleware."""
    await error_response(error, scope["path"])(scope, receive, send)


def install_error_handlers(app: FastAPI) -> None:
    """Installs handlers of all known exceptions; a middleware handles the unknown ones."""
    for kind in (HTTPException, RequestValidationError, RoostError):
        app.add_exception_handler(kind, _respond)
    app.add_exception_handler(ClientDisconnect, _no_response)


async def _respond(request: Request, error: Exception) -> Response:
    path = request.url.path
    if path.rstrip("/") == _API_ROOT:
        return _directions(request)
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        return error_response(from_http(error, f" ({request.method} {path})"), path)
    return error_response(from_exception(error), path)


def _directions(request: Request) -> Response:
    """Returns a 404 with directions for the API's base URL, which people open in a browser."""
    page = str(request.base_url)
    message = (
        f"no such URL ({request.method} {request.url.path}): this is the base URL for API clients, such as "
        f'OpenAI(base_url="{page}v1"); the page to chat on is {page}'
    )
    error = ApiError(ErrorKind.NO_SUCH_URL, message)
    error_reason.get([]).append(log_reason(error))
    return JSONResponse({**error.body, "chat_page": page, "endpoints": request.app.state.endpoints}, 404)


async def _no_response(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)
