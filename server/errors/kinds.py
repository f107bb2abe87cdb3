"""Kinds of errors: status, code and headers. `docs/reference/errors.md` says when each occurs, and what to do."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


def retry_after(seconds: float) -> Mapping[str, str]:
    """Returns headers with the time until a retry: the standard's in whole seconds, and OpenAI's in milliseconds."""
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


_RETRY: Final = retry_after(1.0)
"""Headers for a retry at an unknown time. Clients increase the delay of one second by themselves."""

_CLOSE: Final = {**_RETRY, "connection": "close"}
"""Headers for a retry on another connection, which may reach another server."""

_NO_RETRY: Final = {"x-should-retry": "false"}
"""Headers that keep clients from retrying a request that will fail again."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """A kind of error.

    Attributes:
      status: HTTP status.
      code: Identifier for programs, or None.
      own_headers: Headers of the response; None for the headers of its status.
    """

    status: int
    code: str | None
    own_headers: Mapping[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the response. With 429 and 503, clients should try again."""
        if self.own_headers is not None:
            return self.own_headers
        return _RETRY if self.status in (429, 503) else {}

    @property
    def type(self) -> str:
        """OpenAI's class of the error."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"


INVALID_REQUEST: Final = ErrorKind(400, None)
CONTEXT_TOO_LONG: Final = ErrorKind(400, "context_length_exceeded")
CONSTRAINT_FAILED: Final = ErrorKind(400, "constraint_failed")
NO_PREVIOUS_RESPONSE: Final = ErrorKind(400, "previous_response_not_found")
CONVERSATION_LOCKED: Final = ErrorKind(400, "conversation_locked")
NOT_HTTP: Final = ErrorKind(400, None)
INVALID_API_KEY: Final = ErrorKind(401, "invalid_api_key", {"www-authenticate": "Bearer"})
FOREIGN_PAGE: Final = ErrorKind(403, "foreign_page", _NO_RETRY)
QUOTA_EXCEEDED: Final = ErrorKind(403, "quota_exceeded", _NO_RETRY)
NO_SUCH_URL: Final = ErrorKind(404, None)
NO_SUCH_MODEL: Final = ErrorKind(404, "model_not_found")
NO_SUCH_OBJECT: Final = ErrorKind(404, None)
WRONG_METHOD: Final = ErrorKind(405, "method_not_supported")
REQUEST_TOO_SLOW: Final = ErrorKind(408, "request_too_slow")
CLIENT_TOO_SLOW: Final = ErrorKind(408, "client_too_slow", _NO_RETRY)
REQUEST_ABORTED: Final = ErrorKind(409, "request_aborted", _NO_RETRY)
REQUEST_TOO_LARGE: Final = ErrorKind(413, "request_too_large")
BODY_ENCODED: Final = ErrorKind(415, None)
QUEUE_FULL: Final = ErrorKind(429, "rate_limit_exceeded")
TENANT_MEMORY_FULL: Final = ErrorKind(429, "rate_limit_exceeded")
TOO_MANY_RUNNING: Final = ErrorKind(429, "rate_limit_exceeded")
TOO_MANY_FOLLOWERS: Final = ErrorKind(429, "rate_limit_exceeded")
HEAD_TOO_LARGE: Final = ErrorKind(431, "request_too_large")
INTERNAL_ERROR: Final = ErrorKind(500, None)
NUMERIC_ERROR: Final = ErrorKind(500, "numeric_error")
OVERLOADED: Final = ErrorKind(503, "overloaded")
QUEUE_TIMEOUT: Final = ErrorKind(503, "queue_timeout")
MODEL_LOADING: Final = ErrorKind(503, "model_loading")
SHUTTING_DOWN: Final = ErrorKind(503, "shutting_down", _CLOSE)
ENGINE_UNAVAILABLE: Final = ErrorKind(503, "engine_unavailable")
STREAM_MOVED: Final = ErrorKind(503, "stream_moved", _CLOSE)
STORE_UNAVAILABLE: Final = ErrorKind(503, "store_unavailable")
STORE_OUTDATED: Final = ErrorKind(503, "store_outdated", _CLOSE)
NOT_GENERATING: Final = ErrorKind(503, "not_generating")
REQUEST_TIMEOUT: Final = ErrorKind(504, "request_timeout", _NO_RETRY)
STORE_FULL: Final = ErrorKind(507, None)
RESPONSE_NOT_STORED: Final = ErrorKind(507, "response_not_stored", _NO_RETRY)
STATE_STORE_FULL: Final = ErrorKind(507, None)
