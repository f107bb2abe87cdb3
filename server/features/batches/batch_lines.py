"""Lines of batch files in OpenAI's format: requests of an input file, the order in which they run, and output lines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors.validation_errors import describe
from ...schemas.json_limits import JsonError, decode_json

BatchUrl = Literal["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"]
"""Endpoint that a line may name."""

MAX_LINE_BYTES: Final = 16 * 2**20
"""Maximum bytes of a line, independent of the limit on its body."""

MAX_CUSTOM_ID: Final = 512
"""Maximum characters of a `custom_id`."""

_BESIDE_BODY_BYTES: Final = 8 * 2**10
"""Bytes that a line may have in addition to its body: a `custom_id` of escaped characters takes 6 KiB."""

_PREFIX_BYTES: Final = 256
"""Number of leading prompt bytes by which lines are grouped: about one block of the prefix cache."""

_BYTES_PER_TOKEN: Final = 4
_UNKNOWN_TOKENS: Final = 256
"""Estimates of the bytes of a prompt token, and of the generated tokens of a request without a limit."""

_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")

_WHOLE_ONLY: Final = ("stream", "background")
"""Fields that request something other than one whole response."""

type Parse = Callable[[bytes], Any]


class _Request(BaseModel):
    """A line of an input file. Other fields are ignored."""

    model_config = ConfigDict(strict=True)

    custom_id: Annotated[str, Field(min_length=1, max_length=MAX_CUSTOM_ID)]
    method: Literal["POST"]
    url: BatchUrl
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchLine:
    """Request of an input file.

    Attributes:
      number: Number of its line in the file, from 1.
      custom_id: The client's id, unique in the file.
      url: Endpoint.
      body: JSON of the request's body.
      group: Hash of the beginning of its prompt. Lines with the same one may share a prefix.
      num_tokens: Estimate of its prompt tokens and generated tokens.
    """

    number: int
    custom_id: str
    url: str
    body: bytes
    group: int
    num_tokens: int


class LineError(ValueError):
    """A line is not a request.

    Args:
      message: Reason, for the client.
      custom_id: The line's id, if it has a valid one.
    """

    def __init__(self, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.custom_id = custom_id


def max_line_bytes(max_body_bytes: int) -> int:
    """Returns the maximum bytes of a line whose body may have `max_body_bytes`."""
    return min(max_body_bytes + _BESIDE_BODY_BYTES, MAX_LINE_BYTES)


def parse_line(raw: bytes, number: int, max_body_bytes: int = MAX_LINE_BYTES, parse: Parse = decode_json) -> BatchLine:
    """Returns the request of a line.

    Args:
      raw: Bytes of the line.
      number: Number of the line in its file, from 1.
      max_body_bytes: Maximum bytes of its body.
      parse: Returns the value of JSON, or raises a `JsonError`. A server passes the parser of an admission.

    Raises:
      LineError: The line is not a request.
    """
    if len(raw) > max_line_bytes(max_body_bytes):
        reason = f", as --max-body-bytes is {max_body_bytes}" if max_body_bytes < MAX_LINE_BYTES else ""
        raise LineError(f"the line is longer than {max_line_bytes(max_body_bytes)} bytes{reason}")
    try:
        fields = parse(raw)
        request = _Request.model_validate(fields)
    except JsonError as error:
        raise LineError(f"the line {error}") from None
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        custom_id = _valid_id(fields.get("custom_id")) if isinstance(fields, dict) else None
        raise LineError(describe(detail, detail["loc"] or ("the line",)), custom_id) from None
    custom_id, body = request.custom_id, request.body
    for name in _WHOLE_ONLY:
        if body.get(name):
            raise LineError(f"body.{name} must be left out: a batch has whole responses", custom_id)
    try:
        encoded = orjson.dumps(body)
    except orjson.JSONEncodeError:
        raise LineError("body has a number beyond 64 bits, or is nested too deeply", custom_id) from None
    if len(encoded) > max_body_bytes:
        raise LineError(f"body is longer than --max-body-bytes, {max_body_bytes}", custom_id)
    num_tokens = len(encoded) // _BYTES_PER_TOKEN + _max_tokens(body)
    return BatchLine(number, custom_id, request.url, encoded, _hash(_prefix(body)), num_tokens)


def _valid_id(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= MAX_CUSTOM_ID else None


def _prefix(body: Mapping[str, Any]) -> bytes:
    prompt = [body.get(name) for name in ("instructions", "system", "messages", "prompt", "input")]
    return orjson.dumps([part for part in prompt if part is not None])[:_PREFIX_BYTES]


def _max_tokens(body: Mapping[str, Any]) -> int:
    limits = [body[name] for name in _LIMITS if isinstance(body.get(name), int)]
    return min(max(limits[0], 0), 2**20) if limits else _UNKNOWN_TOKENS


def line_id(number: int, batch: str = "") -> str:
    """Returns the id of a line in output files.

    Args:
      number: Number of the line in the input file.
      batch: Part of the id that identifies the batch; empty for a file that is not stored on a server.
    """
    return f"batch_req_{batch}_{number}" if batch else f"batch_req_{number}"


class TokenUsage(NamedTuple):
    """Token counts of the responses of lines.

    Attributes:
      input: Prompt tokens, including those served from the prefix cache.
      cached: Prompt tokens served from the prefix cache.
      output: Generated tokens.
    """

    input: int = 0
    cached: int = 0
    output: int = 0

    @classmethod
    def of(cls, response: Any) -> "TokenUsage":
        """Returns the tokens that a response reports, with the field names of any of the APIs; none of an error."""
        try:
            usage = response["usage"]
            if "cache_read_input_tokens" in usage:  # Anthropic's `input_tokens` leaves cached tokens out
                cached = usage["cache_read_input_tokens"]
                num_prompt = usage["input_tokens"] + usage["cache_creation_input_tokens"] + cached
                return cls(num_prompt, cached, usage["output_tokens"])
            prompt, generated = ("prompt", "completion") if "prompt_tokens" in usage else ("input", "output")
            cached = (usage.get(f"{prompt}_tokens_details") or {}).get("cached_tokens", 0)
            return cls(usage[f"{prompt}_tokens"], cached, usage[f"{generated}_tokens"])
        except (KeyError, TypeError, AttributeError):
            return NO_USAGE


NO_USAGE: Final = TokenUsage()


@dataclass(frozen=True, slots=True)
class LineResult:
    """Output line of a line that has ended.

    Attributes:
      line: Line of the output, with its newline.
      is_failed: Whether the line is an error, or its response is.
      usage: Token counts of its response.
    """

    line: bytes
    is_failed: bool
    usage: TokenUsage = NO_USAGE


def response_result(id: str, custom_id: str, status: int, request_id: str, body: bytes, parse: Parse) -> LineResult:
    """Returns the result of a request that got a response. A body that is not JSON becomes the message of an error.

    Args:
      id: Id from `line_id`.
      status: HTTP status of the response.
      request_id: Value of the response's header `x-request-id`.
      parse: Returns the value of JSON.
    """
    try:
        usage = TokenUsage.of(parse(body))
    except ValueError:  # the page of a proxy
        message = body.decode(errors="replace")[:1000]
        body = orjson.dumps({"error": {"message": message, "type": "api_error", "param": None, "code": None}})
        usage = NO_USAGE
    response = {"status_code": status, "request_id": request_id, "body": orjson.Fragment(body)}
    return LineResult(_encoded(id, custom_id, response, None), status != 200, usage)


def error_result(id: str, custom_id: str | None, code: str, message: str) -> LineResult:
    """Returns the result of a request that got no response."""
    return LineResult(_encoded(id, custom_id, None, {"code": code, "message": message}), is_failed=True)


def _encoded(
    id: str, custom_id: str | None, response: Mapping[str, Any] | None, error: Mapping[str, Any] | None
) -> bytes:
    line = {"id": id, "custom_id": custom_id, "response": response, "error": error}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


type Column = np.ndarray[Any, np.dtype[Any]]
"""Array with one value for each line of an input."""


def run_order(groups: Column, num_tokens: Column) -> Column:
    """Returns the indices of all lines in the order in which they should run.

    Lines of a group are neighbours, so that the prefix cache serves their common prefix. Groups keep the order of the
    file. Within a group, long and short lines alternate, so that slots are freed at different times.

    Args:
      groups: `group` of each line.
      num_tokens: `num_tokens` of each line.
    """
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    starts = first[members]
    by_length = np.lexsort((-num_tokens.astype(np.int64), starts))
    _, begin, sizes = np.unique(starts[by_length], return_index=True, return_counts=True)
    begin, sizes = np.repeat(begin, sizes), np.repeat(sizes, sizes)
    turn = np.arange(len(by_length)) - begin
    return by_length[begin + np.where(turn % 2 == 0, turn // 2, sizes - 1 - turn // 2)]


def id_hash(custom_id: str) -> int:
    """Returns the hash by which a line is found by its `custom_id`."""
    return _hash(custom_id.encode("utf-8", "surrogatepass"))


def repeated(hashes: Column) -> list[tuple[int, int]]:
    """Returns the indices of lines whose `custom_id` occurs twice, in the order of the file.

    Args:
      hashes: Hash of each line's `custom_id`.
    """
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    return sorted((int(order[place]), int(order[place + 1])) for place in equal)


def _hash(text: bytes) -> int:
    return int.from_bytes(blake2b(text, digest_size=8).digest())
