"""Table of the core's errors: status, code, cause and fix."""

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

_SMALLER: Final = "Send fewer or shorter prompts at a time."
_LATER: Final = "Send it again later, or to another server."


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """A row of a table of errors. `docs/reference/errors.md` is written from these rows.

    Attributes:
      status: HTTP status.
      code: Identifier for programs, or None.
      when: Sentence that says when the error occurs.
      fix: Sentence with the action that the client or the operator can take.
      own_headers: Headers of the response; None for those of its status.
    """

    status: int
    code: str | None
    when: str
    fix: str
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


INVALID_REQUEST: Final = ErrorKind(
    400,
    None,
    "The body is not a JSON object, or the value of a field is missing, invalid or unsupported.",
    "Correct the field that `param` names. The message says what is accepted.",
)
CONTEXT_TOO_LONG: Final = ErrorKind(
    400,
    "context_length_exceeded",
    "The prompt has more tokens than `--max-prompt-tokens`.",
    "Shorten the prompt, or raise the setting.",
)
CONSTRAINT_FAILED: Final = ErrorKind(
    400,
    "constraint_failed",
    "No token can continue the output under the request's schema, regex or grammar.",
    "Correct the schema, regex or grammar.",
)
NO_PREVIOUS_RESPONSE: Final = ErrorKind(
    400,
    "previous_response_not_found",
    "The server does not hold the response that `previous_response_id` names.",
    "Send the whole conversation as `input`.",
)
CONVERSATION_LOCKED: Final = ErrorKind(
    400,
    "conversation_locked",
    "Another response is running in the conversation.",
    "Wait for its end, or cancel it.",
)
NOT_HTTP: Final = ErrorKind(
    400,
    None,
    "The bytes are not an HTTP request with exactly one `Host` header.",
    "Check the client, and `http://` against `https://`.",
)
INVALID_API_KEY: Final = ErrorKind(
    401,
    "invalid_api_key",
    "The API key is missing or wrong.",
    "Send `Authorization: Bearer KEY` or `x-api-key: KEY`.",
    {"www-authenticate": "Bearer"},
)
QUOTA_EXCEEDED: Final = ErrorKind(
    403,
    "quota_exceeded",
    "The API key, or the server if it has no keys, has reached its limit of files, lines, bytes or running batches, "
    "or a conversation its limit of items.",
    "Delete files, wait for batches, or create another conversation. The message names the limit.",
    _NO_RETRY,
)
NO_SUCH_URL: Final = ErrorKind(404, None, "The path does not exist on this port.", "`GET /v1` lists the endpoints.")
NO_SUCH_MODEL: Final = ErrorKind(
    404,
    "model_not_found",
    "`model` is not the name of the served model.",
    "Use the name from `GET /v1/models`, or leave `model` out.",
)
NO_SUCH_OBJECT: Final = ErrorKind(
    404,
    None,
    "The response, chat completion, conversation, item, state or running request does not exist, or belongs to another "
    "API key.",
    "Check the id. A restart loses states, and without `--store` all stored objects; the oldest are evicted.",
)
WRONG_METHOD: Final = ErrorKind(
    405,
    "method_not_supported",
    "The path exists, but not with this method.",
    "Use a method from the header `allow`.",
)
REQUEST_TOO_SLOW: Final = ErrorKind(
    408,
    "request_too_slow",
    "The head or body of the request did not arrive in time; the connection is closed.",
    "Send it again over a faster connection.",
)
CLIENT_TOO_SLOW: Final = ErrorKind(
    408,
    "client_too_slow",
    "The client left too much of a stream unread.",
    "Read the stream as it comes.",
    _NO_RETRY,
)
REQUEST_ABORTED: Final = ErrorKind(
    409,
    "request_aborted",
    "`POST /abort_request` or a cancellation ended the request.",
    "Nothing: the request was aborted on purpose.",
    _NO_RETRY,
)
REQUEST_TOO_LARGE: Final = ErrorKind(
    413,
    "request_too_large",
    "The body is larger than `--max-body-bytes`, or names or packs more than that; or the request would hold more "
    "memory than all requests may, or store more at once than a transaction takes.",
    _SMALLER,
)
BODY_ENCODED: Final = ErrorKind(
    415,
    None,
    "The body is compressed.",
    "Send the body uncompressed: no `content-encoding`, and no `transfer-encoding` except `chunked`.",
)
QUEUE_FULL: Final = ErrorKind(
    429,
    "rate_limit_exceeded",
    "All slots are taken and the waiting queue, or the API key's share of it, is full.",
    "Send it again after `retry-after`, which is estimated from the running requests.",
)
TENANT_MEMORY_FULL: Final = ErrorKind(
    429,
    "rate_limit_exceeded",
    "The requests of this API key hold the key's share of the server's memory.",
    "Wait for some of them, or send smaller ones.",
)
TOO_MANY_RUNNING: Final = ErrorKind(
    429,
    "rate_limit_exceeded",
    "The API key has reached its limit of running background responses, or of their bytes, in one `--store`.",
    "Wait for some of them to end, or cancel them.",
)
TOO_MANY_FOLLOWERS: Final = ErrorKind(
    429,
    "rate_limit_exceeded",
    "The API key has reached its limit of followed streams of background responses on this server.",
    "Close some of the streams, and continue after the last event that was received.",
)
HEAD_TOO_LARGE: Final = ErrorKind(
    431,
    "request_too_large",
    "The URL and the headers are together larger than 64 KiB.",
    "Send fewer or shorter headers.",
)
INTERNAL_ERROR: Final = ErrorKind(
    500,
    None,
    "A bug. The log has the details under the request's `x-request-id`.",
    "Report it with the log.",
)
NUMERIC_ERROR: Final = ErrorKind(
    500,
    "numeric_error",
    "The model's activations for this request are not finite. Other requests continue.",
    "If it continues an imported state, import a sound one. Otherwise check the checkpoint.",
)
OVERLOADED: Final = ErrorKind(
    503,
    "overloaded",
    "Other requests hold all connections, the memory for bodies, or the queue for grammars; or the system, short of "
    "memory, has ended the process of a grammar.",
    _LATER,
)
QUEUE_TIMEOUT: Final = ErrorKind(
    503,
    "queue_timeout",
    "The request got no slot within `queue_timeout` seconds.",
    _LATER,
)
MODEL_LOADING: Final = ErrorKind(
    503,
    "model_loading",
    "The model is being loaded or compiled.",
    "Wait until `GET /health/ready` returns 200.",
)
SHUTTING_DOWN: Final = ErrorKind(
    503,
    "shutting_down",
    "The server drains before it stops.",
    "Send it to another server; the connection is closed.",
    _CLOSE,
)
ENGINE_UNAVAILABLE: Final = ErrorKind(
    503,
    "engine_unavailable",
    "The engine failed or was stopped. The process exits.",
    "Send it to another server. The log says why the engine failed.",
)
STREAM_MOVED: Final = ErrorKind(
    503,
    "stream_moved",
    "The server stopped during a stream. Other servers with the same `--store` continue the response.",
    "`GET` the path in `resume` at another server: it returns the remaining events.",
    _CLOSE,
)
STORE_UNAVAILABLE: Final = ErrorKind(
    503,
    "store_unavailable",
    "The database of `--store` cannot be reached, does not respond in time, or refuses reads or writes.",
    "Send it again later, or with `store: false` if the response need not be kept. The log has the reason.",
)
STORE_OUTDATED: Final = ErrorKind(
    503,
    "store_outdated",
    "A newer server has upgraded the database of `--store` so that this one may not use it. The server is not ready.",
    "Send it to another server. This one's log has both versions: replace it, or restore a backup.",
    _CLOSE,
)
NOT_GENERATING: Final = ErrorKind(
    503,
    "not_generating",
    "`GET /health_generate` got no token in time.",
    "Check the log and the metrics for a stuck step.",
)
REQUEST_TIMEOUT: Final = ErrorKind(
    504,
    "request_timeout",
    "The request was not done within `timeout` or `--request-timeout` seconds.",
    "Request fewer tokens, or allow more time.",
    _NO_RETRY,
)
STORE_FULL: Final = ErrorKind(
    507,
    None,
    "The database of `--store` is full.",
    "Free space, or lower `--store-days`.",
)
RESPONSE_NOT_STORED: Final = ErrorKind(
    507,  # which proxies do not repeat
    "response_not_stored",
    "The response was generated, and then the database of `--store` did not take it. Nothing of it is kept, and it "
    "does not count as usage. The request has `store: true` or a `conversation`; others get the response all the same.",
    "Send it again once `GET /health/ready` returns `ready`, or without these fields.",
    _NO_RETRY,
)
STATE_STORE_FULL: Final = ErrorKind(
    507,
    None,
    "The memory for saved states is full, or the API key has used its share of it.",
    "Delete a state, or raise `--state-cache-gib`.",
)

KINDS: Final = tuple(each for each in tuple(globals().values()) if isinstance(each, ErrorKind))
"""All kinds of this table."""
