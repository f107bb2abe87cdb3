"""Schemas of the responses of OpenAI's API, for `/openapi.json`; the builders write them without validation."""

from typing import Any, Literal, NotRequired, TypedDict

from ..generation.logprobs import ChatLogprobs, CompletionLogprobs, PromptLogprob, ResponseTokenLogprob
from ..http.response_parts import ChoiceEnd, Timings, Usage


class ReportFields(TypedDict):
    """Fields that chat completions, completions and responses of `/generate` have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    timings: NotRequired[Timings]
    warnings: NotRequired[list[str]]


class CalledFunctionPart(TypedDict):
    """A called function. The name comes with a call's first chunk only."""

    name: NotRequired[str]
    arguments: str


class ToolCallPart(TypedDict):
    """A call, or a part of one in a chunk, which has the call's index."""

    index: NotRequired[int]
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: CalledFunctionPart


class AssistantMessage(TypedDict):
    """The message of a chat completion; either text or calls."""

    role: Literal["assistant"]
    refusal: None
    content: str | None
    tool_calls: NotRequired[list[ToolCallPart]]


class ChatCompletionChoice(ChoiceEnd):
    """A choice of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None


class ChatCompletion(ReportFields):
    """Response of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatCompletionChoice]
    usage: Usage
    service_tier: NotRequired[str]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class AssistantMessageDelta(TypedDict):
    """A part of a message."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallPart]]


class ChatCompletionChunkChoice(TypedDict):
    """A part of a choice."""

    index: int
    delta: AssistantMessageDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]
    token_ids: NotRequired[list[int]]


class ChatCompletionChunk(ReportFields):
    """Event of a streamed chat completion."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatCompletionChunkChoice]
    usage: NotRequired[Usage | None]
    service_tier: NotRequired[str]
    prompt_token_ids: NotRequired[list[int]]


class CompletionChoice(ChoiceEnd):
    """A choice of a completion, or a part of one in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class Completion(ReportFields):
    """Response of `/v1/completions`, or an event of its stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]


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


class ResponseObject(TypedDict):
    """Response of `/v1/responses`."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: NotRequired[int | None]
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    background: bool
    error: StoredError | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputFunctionCall]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: str
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    usage: ResponseUsage | None
    user: str | None
    inexact: NotRequired[bool]
    warnings: NotRequired[list[str]]


class ResponseEvent(TypedDict):
    """Event of a streamed response. Further fields depend on its type."""

    type: str
    sequence_number: int


class ItemList(TypedDict):
    """One page of a list."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class DeletedObject(TypedDict):
    """Response to the deletion of a stored response or a saved state."""

    id: str
    object: str
    deleted: bool


class ModelObject(TypedDict):
    """A model. `max_model_len` is null since nothing limits the length."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: None


class ModelList(TypedDict):
    """The served model, as a list."""

    object: Literal["list"]
    data: list[ModelObject]


class AnthropicModelObject(TypedDict):
    """A model, for clients that send the header `anthropic-version`. Limits are null if there are none."""

    type: Literal["model"]
    id: str
    display_name: str
    created_at: str
    lifecycle: str
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelList(TypedDict):
    """The served model, as a list."""

    data: list[AnthropicModelObject]
    has_more: bool
    first_id: str
    last_id: str
