"""Errors of requests: every exception of the core becomes a status and one line of text here."""

import re
from collections.abc import Mapping
from typing import Final, TypedDict

from ...engine import (
    ConstraintError,
    EngineDeadError,
    NumericError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
    RoostError,
)
from ..database.errors import StoreFullError, StoreUnavailableError
from . import kinds
from .kinds import ErrorKind, retry_after

CLIENT_CLOSED_REQUEST: Final = 499
"""Status in the log (nginx's number) of a request whose client has disconnected."""

_MAX_MESSAGE: Final = 1000
"""Maximum characters of a message to a client, which may quote what the client sent."""

_MAX_REASON: Final = 160
"""Maximum characters of an error's message in the log."""


class ErrorDetail(TypedDict):
    """An error in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """Body of every status from 400 on, and event about an error in a stream, in OpenAI's shape."""

    error: ErrorDetail


class ApiError(Exception):
    """An error that clients receive.

    Args:
      kind: Status, class, code and headers.
      message: One line for people.
      param: Field of the request that caused the error.
      headers: Headers in place of those of the kind.
      is_private: Whether the message may repeat what the client sent in a form that cannot be removed, as a compiler's
        message about a grammar does. Such a message is not logged.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        is_private: bool = False,
    ) -> None:
        self.kind = kind
        self.message = _one_line(message)
        self.param = None if param is None else _one_line(param)
        self.headers = kind.headers if headers is None else headers
        self.is_private = is_private
        super().__init__(self.message)

    @property
    def status_code(self) -> int:
        """HTTP status."""
        return self.kind.status

    @property
    def body(self) -> ErrorBody:
        """The error in OpenAI's shape."""
        detail = ErrorDetail(message=self.message, type=self.kind.type, param=self.param, code=self.kind.code)
        return ErrorBody(error=detail)


def _one_line(text: str, most: int = _MAX_MESSAGE) -> str:
    """Returns printable text of at most this length. A name that a client sent may be long and hold line breaks."""
    short = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(char if char.isprintable() else " " for char in short)


def bad_value(param: str | None, message: str, *, is_private: bool = False) -> ApiError:
    """Returns a 400 for an invalid value of a request."""
    return ApiError(kinds.INVALID_REQUEST, message, param=param, is_private=is_private)


def unknown_model(name: str, served: str) -> ApiError:
    """Returns a 404 for another model than the served one."""
    message = f"the model {name!r:.100} does not exist: this server has {served}"
    return ApiError(kinds.NO_SUCH_MODEL, message, param="model")


def invalid_api_key() -> ApiError:
    """Returns a 401 for a missing or wrong key."""
    message = "missing or wrong API key: send the header Authorization: Bearer KEY, or x-api-key: KEY"
    return ApiError(kinds.INVALID_API_KEY, message)


def prompt_too_long(num_tokens: int, limit: int) -> ApiError:
    """Returns a 400 for a prompt with more tokens than the operator allows."""
    message = f"the prompt has {num_tokens} tokens, and this server takes {limit}"
    return ApiError(kinds.CONTEXT_TOO_LONG, message)


def body_too_large(limit: int) -> ApiError:
    """Returns a 413 for a body of more than `limit` bytes."""
    return ApiError(kinds.REQUEST_TOO_LARGE, f"the body is larger than {limit} bytes")


def request_too_large(limit: int) -> ApiError:
    """Returns a 413 for a request that would take more memory than all requests may hold together."""
    message = f"the request would hold more than {limit / 2**20:.0f} MiB of memory: send fewer or shorter prompts"
    return ApiError(kinds.REQUEST_TOO_LARGE, message)


def encoded_body(encoding: str) -> ApiError:
    """Returns a 415 for a compressed body."""
    message = f"content-encoding {encoding[:60]!r} is not supported: send the body uncompressed"
    return ApiError(kinds.BODY_ENCODED, message)


def host_missing() -> ApiError:
    """Returns a 400 for a request without a `Host` header, or with several."""
    return ApiError(kinds.HOST_MISSING, "an HTTP/1.1 request needs exactly one Host header")


def too_many_bytes() -> ApiError:
    """Returns a 503 for a request that comes while others hold all memory."""
    message = "too many large requests at a time: try again later"
    return ApiError(kinds.OVERLOADED, message)


def tenant_holds_too_much() -> ApiError:
    """Returns a 429 for a request of a tenant that holds its share of the memory already."""
    message = "this API key's requests hold too much memory at a time: wait for some of them, or send smaller ones"
    return ApiError(kinds.TENANT_MEMORY_FULL, message)


def response_too_large(param: str, num_bytes: int, limit: int, fix: str) -> ApiError:
    """Returns a 400 for a request whose response could never be held in memory."""
    size = f"{num_bytes / 2**20:.0f} MiB, and at most {limit / 2**20:.0f} MiB are allowed"
    return bad_value(param, f"{param}: the answer could take {size}: {fix}")


def grammars_busy(reason: str) -> ApiError:
    """Returns a 503 for a grammar that other grammars leave no room for."""
    return ApiError(kinds.OVERLOADED, reason)


def too_many_connections() -> ApiError:
    """Returns a 503 for a connection beyond the limit."""
    return ApiError(kinds.OVERLOADED, "too many connections")


def not_http() -> ApiError:
    """Returns a 400 for bytes that are no HTTP request."""
    return ApiError(kinds.NOT_HTTP, "this is no HTTP request")


def head_too_large(limit: int) -> ApiError:
    """Returns a 431 for a URL and headers of more than `limit` bytes together."""
    return ApiError(kinds.HEAD_TOO_LARGE, f"the URL and the headers are together larger than {limit} bytes")


def too_slow(what: str, seconds: float) -> ApiError:
    """Returns a 408 for a part of a request that took too long; the connection is closed then."""
    return ApiError(kinds.REQUEST_TOO_SLOW, f"{what} did not arrive within {seconds:g} s")


def model_loading() -> ApiError:
    """Returns a 503 while the model loads."""
    return ApiError(kinds.MODEL_LOADING, "the model is still loading")


def shutting_down() -> ApiError:
    """Returns a 503 while the server drains."""
    return ApiError(kinds.SHUTTING_DOWN, "the server is shutting down")


def stream_moved(path: str) -> ApiError:
    """Returns the error that ends a stream which other servers continue."""
    return ApiError(kinds.STREAM_MOVED, f"this server stops: continue with GET {path}, at any server")


def not_generating(reason: str) -> ApiError:
    """Returns a 503 for a health check whose token did not come."""
    return ApiError(kinds.NOT_GENERATING, reason)


def request_aborted() -> ApiError:
    """Returns a 409 for a request that another request aborted."""
    return ApiError(kinds.REQUEST_ABORTED, "the request was aborted")


def client_too_slow() -> ApiError:
    """Returns a 408 for a stream of which the client has left too much unread."""
    return ApiError(kinds.CLIENT_TOO_SLOW, "the stream was read too slowly")


def internal_error() -> ApiError:
    """Returns a 500 without details, which go to the log."""
    return ApiError(kinds.INTERNAL_ERROR, "internal server error")


def log_reason(error: ApiError) -> str:
    """Returns the reason of a refusal as one short line for the log, without values that the client sent."""
    if error.is_private:
        param = _one_line(error.param or "the request", _MAX_REASON)
        return f"{param} was refused ({error.kind.code or error.kind.type})"
    return _one_line(_without_quotes(error.message.partition(", got ")[0]), _MAX_REASON)


def _without_quotes(text: str) -> str:
    """Returns the text without all between its first and last quotation mark, if a client's text may be there.

    Such a text is there as Python's `repr`, which has a single quotation mark somewhere unless it was cut. A mark
    within a word is an apostrophe. Double ones in pairs are a field's own choices.
    """
    if "'" not in text and text.count('"') % 2 == 0:
        return text
    first = re.search(r"(?<!\w)['\"]", text)
    if first is None:
        return text
    last = max(text.rfind("'"), text.rfind('"'))
    return f"{text[: first.start()]}…{text[last + 1 :] if last > first.start() else ''}"


def from_exception(error: Exception) -> ApiError:
    """Returns the error that clients receive for an exception; an unexpected one becomes a bare 500."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return ApiError(kinds.QUEUE_FULL, str(error), headers=retry_after(error.retry_after_s))
        case QueueTimeoutError():
            return ApiError(kinds.QUEUE_TIMEOUT, str(error))
        case RequestTimeoutError():
            return ApiError(kinds.REQUEST_TIMEOUT, str(error))
        case ConstraintError():  # no output can match the constraint
            return ApiError(kinds.CONSTRAINT_FAILED, str(error), is_private=True)
        case EngineDeadError():
            return ApiError(kinds.ENGINE_UNAVAILABLE, str(error))
        case NumericError():
            return ApiError(kinds.NUMERIC_ERROR, str(error))
        case StoreFullError():
            return ApiError(kinds.STORE_FULL, "the store of responses is full")
        case StoreUnavailableError():
            return ApiError(kinds.STORE_UNAVAILABLE, "the store of responses is not available")
        case RoostError():
            return ApiError(kinds.INTERNAL_ERROR, str(error))
        case _:
            return internal_error()
