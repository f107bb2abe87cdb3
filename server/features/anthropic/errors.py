"""Errors in Anthropic's shape."""

from collections.abc import Mapping
from typing import Any, Final, NotRequired, TypedDict

from ...errors.request_errors import ApiError
from ...http.openapi import Responses
from ...observability.logging import request_id

_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


_NO_THREADS: Final[dict[str, Any]] = {"error_code": "thread_unsupported_request", "unsupported": []}
"""Details of the error after which Anthropic's tool runners send the whole conversation without a thread."""


class AnthropicErrorDetail(TypedDict):
    """An error in Anthropic's shape."""

    type: str
    message: str
    details: NotRequired[dict[str, Any]]


class AnthropicErrorBody(TypedDict):
    """Body of responses with a status of 400 or above, and event about an error in a stream, in Anthropic's shape."""

    type: str
    error: AnthropicErrorDetail
    request_id: str


def anthropic_type(status: int) -> str:
    """Returns Anthropic's class of the errors of an HTTP status."""
    return _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def anthropic_body(error: ApiError) -> AnthropicErrorBody:
    """Returns an error in Anthropic's shape. It has no field for the request field that caused it, so the message names
    it.
    """
    message, param = error.message, error.param
    detail = AnthropicErrorDetail(
        type=anthropic_type(error.status_code),
        message=message if param is None or param in message else f"{param}: {message}",
    )
    if param == "thread":
        detail["details"] = _NO_THREADS
    return AnthropicErrorBody(type="error", error=detail, request_id=request_id.get())


ANTHROPIC_ERRORS: Final[Responses] = {"4XX": {"model": AnthropicErrorBody}, "5XX": {"model": AnthropicErrorBody}}
"""Responses of routes, for `/openapi.json`."""
