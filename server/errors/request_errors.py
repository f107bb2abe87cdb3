"""Errors of requests: converts every exception of the core to a status and one line of text; and warnings.

Warnings name parts of a request that were dropped or ignored. A header reports them, and so does the body on request.
"""

import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypedDict

from ...engine import (
    ConstraintError,
    ConstraintLostError,
    EngineDeadError,
    NumericError,
    QueueFullError,
    QueueTimeoutError,
    RequestTimeoutError,
    RoostError,
)
from ..database.errors import (
    RefusedError,
    StoreFullError,
    StoreOutdatedError,
    StoreUnavailableError,
    WriteTooLargeError,
)
from . import kinds
from .kinds import ErrorKind, retry_after
from .validation_errors import describe, path_of, without_client_names

BUSY_STATUSES: Final = frozenset({429, 503})
"""Statuses that concern only one replica at one time: another replica, or a later attempt, may succeed."""

CLIENT_CLOSED_REQUEST: Final = 499
"""Status in the log (nginx's number) of a request whose client has disconnected."""

_MAX_MESSAGE: Final = 1000
"""Maximum characters of a message to a client, which may quote the client's input."""

_MAX_REASON: Final = 160
"""Maximum characters of an error's message in the log."""

_QUOTED: Final = re.compile(r"""(?<!\w)['"](?:.*['"]|.*)""")
"""Text from the first quotation mark to the last one, or to the end without a second one. A mark within a word is an
apostrophe."""

WARNINGS_HEADER: Final = "x-roost-warnings"

MAX_WARNINGS: Final = 16

_MAX_WARNING: Final = 60
"""Maximum characters of one warning."""

request_warnings: Final[ContextVar[list[str]]] = ContextVar("request_warnings")
"""Warnings of the current HTTP request, in order."""


class ErrorDetail(TypedDict):
    """An error in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """Body of responses with a status of 400 or above, and event about an error in a stream, in OpenAI's shape."""

    error: ErrorDetail


class ApiError(RefusedError):
    """An error that clients receive.

    Args:
      kind: Status, class, code and headers.
      message: One line for people.
      param: Field of the request that caused the error.
      headers: Headers that replace the kind's headers.
      is_private: Whether the message may repeat the client's input in a form that cannot be removed, such as a
        compiler's message about a grammar. Such a message is not logged.
      reason: Text that is logged instead of the message; None logs the message without what it quotes.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        is_private: bool = False,
        reason: str | None = None,
    ) -> None:
        self.kind = kind
        self.message = _one_line(message)
        self.param = None if param is None else _one_line(param)
        self.headers = kind.headers if headers is None else headers
        self.is_private = is_private
        self.reason = self.message if reason is None else reason
        self.status_code = kind.status
        detail = ErrorDetail(message=self.message, type=kind.type, param=self.param, code=kind.code)
        self.body = ErrorBody(error=detail)
        super().__init__(self.message)


def _one_line(text: str, most: int = _MAX_MESSAGE) -> str:
    """Returns printable text of at most this length. A name from a client may be long and contain line breaks."""
    short = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(char if char.isprintable() else " " for char in short)


def bad_value(param: str | None, message: str, *, is_private: bool = False, reason: str | None = None) -> ApiError:
    """Returns a 400 for an invalid value of a request."""
    return ApiError(kinds.INVALID_REQUEST, message, param=param, is_private=is_private, reason=reason)


def refusal(detail: Mapping[str, Any], location: Sequence[str | int], body: Any) -> ApiError:
    """Returns the error for a value that a schema refuses.

    Args:
      detail: Entry of pydantic's `errors()`.
      location: Place of the value in the body or among the parameters.
      body: Body of the request, or the part that was parsed.
    """
    if isinstance(body, bytes) and not location:
        return bad_value(None, "send the body as JSON, with Content-Type: application/json")
    param = path_of(location).partition(".")[0].partition("[")[0]
    place = location or ["the body"]
    return bad_value(param or None, describe(detail, place), reason=describe(detail, without_client_names(place)))


def unknown_model(name: str, served: Sequence[str]) -> ApiError:
    """Returns a 404 for a model other than the served one."""
    message = f"the model {name!r:.100} does not exist: this server has {', '.join(served)}"
    return ApiError(kinds.NO_SUCH_MODEL, message, param="model")


def body_too_large(limit: int, flag: str | None = None) -> ApiError:
    """Returns a 413 for a body of more than `limit` bytes, which `flag` sets."""
    fix = "" if flag is None else f": send less, or raise {flag}"
    return ApiError(kinds.REQUEST_TOO_LARGE, f"the body is larger than {limit} bytes{fix}")


def too_many_connections() -> ApiError:
    """Returns a 503 for a connection beyond the limit."""
    return ApiError(kinds.OVERLOADED, "too many connections")


def head_too_large(limit: int) -> ApiError:
    """Returns a 431 for a URL and headers of more than `limit` bytes together."""
    return ApiError(kinds.HEAD_TOO_LARGE, f"the URL and the headers are together larger than {limit} bytes")


def shutting_down() -> ApiError:
    """Returns a 503 while the server drains."""
    return ApiError(kinds.SHUTTING_DOWN, "the server is shutting down")


def store_outdated() -> ApiError:
    """Returns a 503 once a newer server has excluded this one from the database."""
    return ApiError(kinds.STORE_OUTDATED, "a newer server has upgraded the store: this one may not use it any more")


def stream_moved(path: str) -> ApiError:
    """Returns the error that ends a stream which other servers continue."""
    return ApiError(kinds.STREAM_MOVED, f"this server stops: continue with GET {path}, at any server")


def request_aborted() -> ApiError:
    """Returns a 409 for a request that another request aborted."""
    return ApiError(kinds.REQUEST_ABORTED, "the request was aborted")


def internal_error() -> ApiError:
    """Returns a 500 without details, which go to the log."""
    return ApiError(kinds.INTERNAL_ERROR, "internal server error")


def log_reason(error: ApiError) -> str:
    """Returns the reason of a refusal as one short line for the log, without values from the client."""
    if error.is_private:
        param = _one_line(error.param or "the request", _MAX_REASON)
        return f"{param} was refused ({error.kind.code or error.kind.type})"
    return _one_line(_without_quotes(error.reason.partition(", got ")[0]), _MAX_REASON)


def _without_quotes(text: str) -> str:
    """Returns the text without everything between its first and last quotation mark, if it may contain a client's text.

    A client's text is quoted by Python's `repr`, so it has an unpaired quotation mark only if it was truncated. Paired
    double quotation marks enclose the valid values of a field.
    """
    return text if "'" not in text and text.count('"') % 2 == 0 else _QUOTED.sub("…", text)


_KINDS: Final[Mapping[type[Exception], ErrorKind]] = {
    QueueTimeoutError: kinds.QUEUE_TIMEOUT,
    RequestTimeoutError: kinds.REQUEST_TIMEOUT,
    ConstraintLostError: kinds.OVERLOADED,
    EngineDeadError: kinds.ENGINE_UNAVAILABLE,
    NumericError: kinds.NUMERIC_ERROR,
    WriteTooLargeError: kinds.REQUEST_TOO_LARGE,
    RoostError: kinds.INTERNAL_ERROR,
}
"""Kinds of the exceptions whose text clients receive. Base classes come last."""


def from_exception(error: Exception) -> ApiError:
    """Returns the error that clients receive for an exception; an unexpected one becomes a bare 500."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return ApiError(kinds.QUEUE_FULL, str(error), headers=retry_after(error.retry_after_s))
        case ConstraintError() if not isinstance(error, ConstraintLostError):  # no output can match the constraint
            return ApiError(kinds.CONSTRAINT_FAILED, str(error), is_private=True)
        case StoreFullError():
            return ApiError(kinds.STORE_FULL, "the store of responses is full")
        case StoreOutdatedError():
            return store_outdated()
        case StoreUnavailableError():
            return ApiError(kinds.STORE_UNAVAILABLE, "the store of responses is not available")
        case _:
            kind = next((kind for known, kind in _KINDS.items() if isinstance(error, known)), None)
            return internal_error() if kind is None else ApiError(kind, str(error))


def warn(text: str) -> None:
    """Adds a warning, unless it is a duplicate or there are `MAX_WARNINGS` already. Long warnings are truncated."""
    warnings, text = request_warnings.get([]), text[:_MAX_WARNING]
    if text not in warnings and len(warnings) < MAX_WARNINGS:
        warnings.append(text)


def warn_all(texts: Iterable[str]) -> None:
    """Adds several warnings."""
    for text in texts:
        warn(text)


def header_value(warnings: Sequence[str]) -> str:
    """Returns the header's value: percent-encoded, separated by commas."""
    return ", ".join(urllib.parse.quote(text, safe=" ()=?") for text in warnings)
