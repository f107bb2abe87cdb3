"""Table of the core's errors: status, code, cause and fix."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


def retry_after(seconds: float) -> Mapping[str, str]:
    """Returns headers with the time until a retry: the standard's in whole seconds, and OpenAI's in milliseconds."""
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


RETRY: Final = retry_after(1.0)
"""Headers for a retry at an unknown time. Clients increase the delay of one second by themselves."""

CLOSE: Final = {**RETRY, "connection": "close"}
"""Headers for a retry on another connection, which may reach another server."""

NO_RETRY: Final = {"x-should-retry": "false"}
"""Headers that keep clients from retrying a request that will fail again."""

_INVALID_REQUEST: Final = "invalid_request_error"
_RATE_LIMIT: Final = "rate_limit_error"
SERVER_ERROR: Final = "server_error"

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
      headers: Headers of the response.
      type: OpenAI's class of the error.
    """

    status: int
    code: str | None
    when: str
    fix: str
    headers: Mapping[str, str] = field(default_factory=dict)
    type: str = _INVALID_REQUEST


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
    400, None, "The bytes are not an HTTP request.", "Check the client, and `http://` against `https://`."
)
HOST_MISSING: Final = ErrorKind(
    400, None, "The request has no `Host` header, or several.", "Send exactly one `Host` header."
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
    NO_RETRY,
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
    NO_RETRY,
)
REQUEST_ABORTED: Final = ErrorKind(
    409,
    "request_aborted",
    "`POST /abort_request` or a cancellation ended the request.",
    "Nothing: the request was aborted on purpose.",
    NO_RETRY,
)
PROFILE_IN_PROGRESS: Final = ErrorKind(
    409,
    "profile_in_progress",
    "Another profile is being recorded.",
    "Wait for its end.",
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
    RETRY,
    _RATE_LIMIT,
)
TENANT_MEMORY_FULL: Final = ErrorKind(
    429,
    "rate_limit_exceeded",
    "The requests of this API key hold the key's share of the server's memory.",
    "Wait for some of them, or send smaller ones.",
    RETRY,
    _RATE_LIMIT,
)
TOO_MANY_RUNNING: Final = ErrorKind(
    429,
    "rate_limit_exceeded",
    "The API key has reached its limit of running background responses, or of their bytes, in one `--store`.",
    "Wait for some of them to end, or cancel them.",
    RETRY,
    _RATE_LIMIT,
)
TOO_MANY_FOLLOWERS: Final = ErrorKind(
    429,
    "rate_limit_exceeded",
    "The API key has reached its limit of followed streams of background responses on this server.",
    "Close some of the streams, and continue after the last event that was received.",
    RETRY,
    _RATE_LIMIT,
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
    type=SERVER_ERROR,
)
NUMERIC_ERROR: Final = ErrorKind(
    500,
    "numeric_error",
    "The model's activations for this request are not finite. Other requests continue.",
    "If it continues an imported state, import a sound one. Otherwise check the checkpoint.",
    type=SERVER_ERROR,
)
OVERLOADED: Final = ErrorKind(
    503,
    "overloaded",
    "Other requests hold all connections, the memory for bodies, or the queue for grammars; or the system, short of "
    "memory, has ended the process of a grammar.",
    _LATER,
    RETRY,
    SERVER_ERROR,
)
QUEUE_TIMEOUT: Final = ErrorKind(
    503,
    "queue_timeout",
    "The request got no slot within `queue_timeout` seconds.",
    _LATER,
    RETRY,
    SERVER_ERROR,
)
MODEL_LOADING: Final = ErrorKind(
    503,
    "model_loading",
    "The model is being loaded or compiled.",
    "Wait until `GET /health/ready` returns 200.",
    RETRY,
    SERVER_ERROR,
)
SHUTTING_DOWN: Final = ErrorKind(
    503,
    "shutting_down",
    "The server drains before it stops.",
    "Send it to another server; the connection is closed.",
    CLOSE,
    SERVER_ERROR,
)
ENGINE_UNAVAILABLE: Final = ErrorKind(
    503,
    "engine_unavailable",
    "The engine failed or was stopped. The process exits.",
    "Send it to another server. The log says why the engine failed.",
    RETRY,
    SERVER_ERROR,
)
STREAM_MOVED: Final = ErrorKind(
    503,
    "stream_moved",
    "The server stopped during a stream. Other servers with the same `--store` continue the response.",
    "`GET` the path in `resume` at another server: it returns the remaining events.",
    CLOSE,
    SERVER_ERROR,
)
STORE_UNAVAILABLE: Final = ErrorKind(
    503,
    "store_unavailable",
    "The database of `--store` cannot be reached, does not respond in time, or refuses reads or writes.",
    "Send it again later, or with `store: false` if the response need not be kept. The log has the reason.",
    RETRY,
    SERVER_ERROR,
)
STORE_OUTDATED: Final = ErrorKind(
    503,
    "store_outdated",
    "A newer server has upgraded the database of `--store` so that this one may not use it. The server is not ready.",
    "Send it to another server. This one's log has both versions: replace it, or restore a backup.",
    CLOSE,
    SERVER_ERROR,
)
NOT_GENERATING: Final = ErrorKind(
    503,
    "not_generating",
    "`GET /health_generate` got no token in time.",
    "Check the log and the metrics for a stuck step.",
    RETRY,
    SERVER_ERROR,
)
REQUEST_TIMEOUT: Final = ErrorKind(
    504,
    "request_timeout",
    "The request was not done within `timeout` or `--request-timeout` seconds.",
    "Request fewer tokens, or allow more time.",
    NO_RETRY,
    SERVER_ERROR,
)
STORE_FULL: Final = ErrorKind(
    507,
    None,
    "The database of `--store` is full.",
    "Free space, or lower `--store-days`.",
    type=SERVER_ERROR,
)
RESPONSE_NOT_STORED: Final = ErrorKind(
    507,  # which proxies do not repeat
    "response_not_stored",
    "The response was generated, and then the database of `--store` did not take it. Nothing of it is kept, and it "
    "does not count as usage. The request has `store: true` or a `conversation`; others get the response all the same.",
    "Send it again once `GET /health/ready` returns `ready`, or without these fields.",
    NO_RETRY,
    SERVER_ERROR,
)
STATE_STORE_FULL: Final = ErrorKind(
    507,
    None,
    "The memory for saved states is full, or the API key has used its share of it.",
    "Delete a state, or raise `--state-cache-gib`.",
    type=SERVER_ERROR,
)

KINDS: Final = tuple(each for each in tuple(globals().values()) if isinstance(each, ErrorKind))
"""All kinds of this table."""
