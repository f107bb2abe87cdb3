"""Schemas of responses, for `/openapi.json`. The builder writes responses without validation."""

from typing import Any, Literal, NotRequired, TypedDict

from ...generation.logprobs import ResponseTokenLogprob


class OutputText(TypedDict):
    """Text of an output message."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ResponseTokenLogprob]


class OutputMessage(TypedDict):
    """Output item with a text."""

    type: Literal["message"]
    id: str
    status: str
    role: Literal["assistant"]
    content: list[OutputText]


class OutputFunctionCall(TypedDict):
    """Output item with a call."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: str


class ResponseUsage(TypedDict):
    """Numbers of tokens of a response."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class StoredError(TypedDict):
    """Error of a failed response."""

    code: str
    message: str


class ResponseConversation(TypedDict):
    """Conversation that a response continues."""

    id: str


class ResponseObject(TypedDict):
    """Response of `/v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: StoredError | None
    frequency_penalty: float
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputFunctionCall]
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None
    user: str | None
    conversation: NotRequired[ResponseConversation]
    inexact: NotRequired[bool]
    warnings: NotRequired[list[str]]


class InputTokens(TypedDict):
    """Response of `/v1/responses/input_tokens`."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactionOutput(TypedDict):
    """Item that stands for all messages of a conversation so far."""

    type: Literal["compaction"]
    id: str
    encrypted_content: str


class CompactedInput(TypedDict):
    """Response of `/v1/responses/compact`."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[CompactionOutput]
    usage: ResponseUsage


class ResponseEvent(TypedDict):
    """Event of a streamed response. Further fields depend on its type."""

    type: str
    sequence_number: int
