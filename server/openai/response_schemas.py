"""Schemas of the responses of OpenAI's API, for `/openapi.json`. The builders write responses without validation."""

from typing import Any, Literal, NotRequired, TypedDict

from ..generation.logprobs import ChatLogprobs, CompletionLogprobs, PromptLogprob
from ..http.routes import described


class PromptTokensDetails(TypedDict):
    """Details of `Usage.prompt_tokens`."""

    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    """Details of `Usage.completion_tokens`.

    `accepted_prediction_tokens` and `rejected_prediction_tokens` count tokens of `prediction`, each once for a choice:
    drafted and accepted tokens, and tokens that were drafted but never accepted. Both are 0 until the choice
    ends, and without speculative decoding.
    """

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(TypedDict):
    """Numbers of tokens of a response. Each prompt counts once, even if it has several choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


@described
class ItemUsage(TypedDict):
    """Numbers of tokens of a response in OpenAI's newer form, or of all responses of a batch."""

    input_tokens: int
    """Prompt tokens."""

    input_tokens_details: dict[str, int]
    """`cached_tokens`: prompt tokens served from the prefix cache."""

    output_tokens: int
    """Generated tokens."""

    output_tokens_details: dict[str, int]
    """`reasoning_tokens`: always 0, as the model does not reason."""

    total_tokens: int
    """Sum of both."""


def item_usage(input_tokens: int, cached_tokens: int = 0, output_tokens: int = 0) -> ItemUsage:
    """Returns the numbers of tokens with their details."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + output_tokens,
    }


class ChoiceEnd(TypedDict):
    """Fields about the end of a choice, in streams and whole responses."""

    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: NotRequired[list[int]]


class ReportFields(TypedDict):
    """Fields that several responses have in common."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class CalledFunctionPart(TypedDict):
    """A called function. Only a call's first chunk has the name."""

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
    root: str
    parent: str | None
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


class AnthropicErrorDetail(TypedDict):
    """An error in Anthropic's shape."""

    type: str
    message: str
    details: NotRequired[dict[str, Any]]


class AnthropicErrorBody(TypedDict):
    """Body of responses with a status of 400 or above, and event about an error in a stream, in Anthropic's shape."""

    type: str
    error: AnthropicErrorDetail
    request_id: str
