"""Responses of `/v1/messages`: schemas for `/openapi.json`, the builder of messages and events, and errors."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, TypedDict
from uuid import uuid4

from ....engine import FinishReason
from ...constraints.tool_calls import CallPiece
from ...errors.request_errors import ApiError
from ...generation.delta import Delta
from ...generation.prompts import Prompt
from ...http.responses import ResponseBuilder, SseEncoder
from ...observability.logging import request_id
from ...openai.response_schemas import AnthropicErrorBody, AnthropicErrorDetail
from ...text.served_model import ServedModel


class MessageTextBlock(TypedDict):
    """A text."""

    type: Literal["text"]
    text: str


class MessageToolUseBlock(TypedDict):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(TypedDict):
    """Numbers of tokens. `input_tokens` were not read from the prefix cache, to which every prompt is added."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageObject(TypedDict):
    """Response of `/v1/messages`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageTextBlock | MessageToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class MessageEvent(TypedDict):
    """Event of a streamed message. Further fields depend on its type."""

    type: str


class TokenCount(TypedDict):
    """Response of `/v1/messages/count_tokens`."""

    input_tokens: int


PINGED_EVENTS: Final = SseEncoder(is_named=True, keep_alive=b'event: ping\ndata: {"type":"ping"}\n\n')
"""Encoder of messages."""

_EMPTY_TEXT: Final = {"type": "text", "text": ""}


class MessageBuilder(ResponseBuilder):
    """Builds messages and their events."""

    sse = PINGED_EVENTS

    def __init__(self, model: ServedModel, prompt: Prompt) -> None:
        self.id = f"msg_{uuid4().hex}"
        self._model = model
        self._prompt = prompt
        self._num_tokens = 0
        self._num_cached = 0
        self._num_blocks = 0
        self._end = Delta(0)

    def whole(self, choices: Sequence[Delta]) -> dict[str, Any]:
        (choice,) = choices
        self._num_cached = choice.num_cached
        calls = [_tool_use(call, _parsed(call.arguments)) for call in choice.calls]
        content = calls or [{"type": "text", "text": choice.text}]
        return {**self._message(content, len(choice.token_ids)), **_stop(choice)}

    def opening(self) -> Iterator[dict[str, Any]]:
        yield {"type": "message_start", "message": self._message([], 0)}
        yield {"type": "ping"}

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yields the events of a delta. A block begins when its type is known."""
        self._num_tokens += len(delta.token_ids)
        self._num_cached += delta.num_cached
        self._end = delta
        if delta.text:
            if not self._num_blocks:
                yield from self._begin(_EMPTY_TEXT)
            yield self._block_delta({"type": "text_delta", "text": delta.text})
        for piece in delta.calls:
            if piece.id is not None:
                yield from self._begin(_tool_use(piece, {}))
            if piece.arguments:
                yield self._block_delta({"type": "input_json_delta", "partial_json": piece.arguments})

    def closing(self) -> Iterator[dict[str, Any]]:
        if not self._num_blocks:
            yield from self._begin(_EMPTY_TEXT)
        yield self._stopped_block()
        yield {"type": "message_delta", "delta": _stop(self._end), "usage": self._usage(self._num_tokens)}
        yield {"type": "message_stop"}

    def failure(self, error: ApiError) -> Iterator[Mapping[str, Any]]:
        yield anthropic_body(error)

    def _begin(self, block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the start of the next block, and the end of the one before it."""
        if self._num_blocks:
            yield self._stopped_block()
        yield {"type": "content_block_start", "index": self._num_blocks, "content_block": block}
        self._num_blocks += 1

    def _block_delta(self, delta: dict[str, str]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}

    def _stopped_block(self) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": self._num_blocks - 1}

    def _message(self, content: list[dict[str, Any]], output_tokens: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self._model.id,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(output_tokens),
        }

    def _usage(self, output_tokens: int) -> dict[str, int]:
        """Returns the usage. The number of cached tokens is unknown before the first token."""
        return {
            "input_tokens": len(self._prompt.token_ids) - self._num_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self._num_cached,
            "output_tokens": output_tokens,
        }


def _tool_use(call: CallPiece, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _parsed(arguments: str) -> dict[str, Any]:
    """Returns a call's arguments, which must be an object; empty if the output was truncated within them."""
    try:
        parsed: dict[str, Any] = json.loads(arguments)
    except ValueError:
        return {}
    return parsed


def _stop(delta: Delta) -> dict[str, str | None]:
    if delta.called:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if isinstance(delta.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": delta.stop_reason}
    cut = delta.finish_reason is FinishReason.LENGTH
    return {"stop_reason": "max_tokens" if cut else "end_turn", "stop_sequence": None}


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
