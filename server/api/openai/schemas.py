"""Schemas of OpenAI's chat completions and completions, and of what Roost's own endpoints share with them.

Null means the same as leaving a field out. Fields that no schema names are checked by `unknown_fields.py`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from ....engine import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS
from ...generation.conversation import ConversationMessage, ToolOptions
from ...text.chat_template import Ending
from ..common.field_rules import GENERATION_RULES, FieldRules
from ..common.sampling_fields import NUMBERS, SamplingFields, with_numbers
from ..common.schema_base import (
    MAX_STOP_CHARACTERS,
    Body,
    CacheSalt,
    Count,
    Fields,
    Several,
    Text,
    TokenIds,
    TopLogprobs,
    is_list,
    union,
)
from .response_format_schemas import StructuredFields
from .tool_schemas import MAX_TOOLS, Tool, ToolCall, ToolChoice, tool_options

MAX_STOP_STRINGS: Final = 64
"""Maximum number of stop strings; OpenAI allows 4."""

MAX_TOTAL_STOP_CHARACTERS: Final = 4 * MAX_STOP_CHARACTERS
"""Characters of all stop strings of a request together. Their tables take about 20 ms and 400 kB."""

MAX_BAD_WORDS: Final = 128
"""Maximum number of bad words. Each is encoded in two ways, with and without a space before it."""

MAX_BAD_WORD_CHARACTERS: Final = 8192
"""Characters of all bad words together, which are tokenized on the event loop."""


def _kind_of_prompt(value: Any) -> str | None:
    """Returns the kind by the first entry, so that a long list is validated only once."""
    match value:
        case str():
            return "<text>"
        case [str(), *_]:
            return "<texts>"
        case [int(), *_]:
            return "<ids>"
        case [list(), *_]:
            return "<id lists>"
        case _:
            return None


def kind_of_part(value: Any) -> str:
    return "<refusal>" if isinstance(value, dict) and value.get("type") == "refusal" else "<text>"


def _within_total(strings: list[str]) -> list[str]:
    total = sum(map(len, strings))
    if total > MAX_TOTAL_STOP_CHARACTERS:
        raise ValueError(
            f"stop strings may have {MAX_TOTAL_STOP_CHARACTERS} characters together, got {total}: send fewer or shorter"
        )
    return strings


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
StopStringList = Annotated[
    list[StopString], Field(fail_fast=True, max_length=MAX_STOP_STRINGS), AfterValidator(_within_total)
]
Stop = Annotated[
    Annotated[StopString, Tag("<text>")] | Annotated[StopStringList, Tag("<list>")],
    union(is_list, "must be a string or an array of strings"),
]

Prompt = Annotated[
    Text
    | Annotated[list[str], Field(fail_fast=True), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<ids>")]
    | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(fail_fast=True), Tag("<id lists>")],
    union(
        _kind_of_prompt,
        "must be a string, a non-empty array of token ids, or a non-empty array of either",
    ),
]


class StreamOptions(Fields):
    """`include_obfuscation` is accepted, and nothing is obfuscated."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


@with_numbers(*NUMBERS)
class GenerationBody(StructuredFields, SamplingFields):
    """Fields that chat, completions and `/generate` share. None means the checkpoint's default, or else OpenAI's."""

    field_rules: ClassVar[FieldRules] = GENERATION_RULES

    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=MAX_BIASES)
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    prompt_logprobs: TopLogprobs | None = None
    bad_words: list[StopString] = Field(default_factory=list, fail_fast=True, max_length=MAX_BAD_WORDS)
    logprob_token_ids: TokenIds = Field(default_factory=list, max_length=MAX_LOGPROBS)
    stop: Stop | None = None
    stop_token_ids: TokenIds = Field(default_factory=list, max_length=MAX_STOP_IDS)
    include_stop_str_in_output: bool = False
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] = "left"
    return_token_ids: bool = False
    return_timings: bool = False
    cache_salt: CacheSalt = ""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, one by one."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_candidates(self) -> int:
        """Number of choices to generate for each prompt."""
        return self.n


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    prompt: Prompt
    echo: bool = False
    logprobs: TopLogprobs | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    add_special_tokens: bool = True
    from_state: str | None = None

    @property
    def num_candidates(self) -> int:
        """Number of choices to generate for each prompt; the response holds the `n` most likely."""
        return self.best_of or self.n

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(Sequence[str | list[int]], self.prompt)


class GenerateBody(GenerationBody):
    """`POST /generate`."""

    token_ids: Annotated[TokenIds, Field(min_length=1)]
    logprobs: TopLogprobs | None = None
    from_state: str | None = None


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The refusal's text."""
        return self.refusal


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(kind_of_part),
]


class ChatMessage(BaseModel):
    """A message. Parts of text are joined by line breaks; `name` and the like are let pass."""

    model_config = ConfigDict(strict=True)

    role: str
    content: (
        Annotated[
            Text | Annotated[Several[ContentPart], Tag("<list>")],
            union(is_list, "must be a string or an array of parts"),
        ]
        | None
    ) = None
    tool_calls: Several[ToolCall] | None = None
    tool_call_id: str | None = None

    def as_message(self) -> ConversationMessage:
        """Returns the message in the form that all APIs share."""
        content = self.content
        return ConversationMessage(
            self.role,
            tuple(part.text for part in content) if isinstance(content, list) else content,
            tuple(call.as_call() for call in self.tool_calls or ()),
            self.tool_call_id,
        )


Messages = Annotated[Several[ChatMessage], Field(min_length=1)]


class TemplateFields(Body):
    """Fields that decide how messages become a prompt."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    tools: list[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = "auto"

    @property
    def ending(self) -> Ending:
        """The prompt's ending: the header of an assistant's message, unless the request declines it."""
        default = not self.continue_final_message
        add_header = default if self.add_generation_prompt is None else self.add_generation_prompt
        return Ending(add_header, self.continue_final_message, self.chat_template_kwargs)

    @property
    def tool_options(self) -> ToolOptions:
        """The tools and the tool choice."""
        return tool_options(self.tools, self.tool_choice)


class ChatBody(GenerationBody, TemplateFields):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    parallel_tool_calls: bool = True

    @property
    def tool_options(self) -> ToolOptions:
        """The tools and the tool choice."""
        return tool_options(self.tools, self.tool_choice, parallel=self.parallel_tool_calls)


class TokenizeBody(TemplateFields):
    """`POST /tokenize`, with either `prompt` or `messages`."""

    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True


class StateBody(Body):
    """`POST /v1/states`; `index` is the choice's."""

    request_id: Annotated[str, Field(min_length=1)]
    index: Count = 0


class AbortBody(Fields):
    """`POST /abort_request`."""

    request_id: Annotated[str, Field(min_length=1)]


class DetokenizeBody(Body):
    """`POST /detokenize`."""

    tokens: TokenIds
