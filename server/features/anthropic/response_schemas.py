"""Schemas of the responses of Anthropic's API, for `/openapi.json`. The builder writes responses without validation."""

from typing import Any, Literal, NotRequired, TypedDict


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
    """Numbers of tokens. `input_tokens` were neither read from the prefix cache nor added to it."""

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
    warnings: NotRequired[list[str]]


class MessageEvent(TypedDict):
    """Event of a streamed message. Further fields depend on its type."""

    type: str


class TokenCount(TypedDict):
    """Response of `/v1/messages/count_tokens`."""

    input_tokens: int
