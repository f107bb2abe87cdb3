"""What clients may send. Null means the same as leaving a field out; fields that are not here are for `fields.py`."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from ....engine import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS
from ...text.chat_template import Ending
from ..common.schema_base import (
    MAX_STOP_CHARACTERS,
    Body,
    CacheSalt,
    Count,
    Fields,
    Several,
    TermsFields,
    Text,
    TokenIds,
    TopLogprobs,
    is_list,
    union,
)
from .response_format_schemas import StructuredFields
from .tool_schemas import MAX_TOOLS, Tool, ToolCall, ToolChoice

MAX_STOP_STRINGS: Final = 64
"""OpenAI allows 4."""

MAX_TOTAL_STOP_CHARACTERS: Final = 4 * MAX_STOP_CHARACTERS
"""Characters of all stop strings of a request together. Their tables take about 20 ms and 400 kB."""

MAX_BAD_WORDS: Final = 128
"""Each is spelled in two ways, with and without a space before it."""

MAX_BAD_WORD_CHARACTERS: Final = 8192
"""Characters of all bad words together, which are tokenized on the event loop."""

Penalty = Annotated[float, Field(ge=-2, le=2)]


def _kind_of_prompt(value: Any) -> str | None:
    """Told by the first entry, so that a long list of ids is read once and an error says what is wrong with it."""
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


class GenerationBody(StructuredFields, TermsFields):
    """What chat, completions and `/generate` have in common. None: the checkpoint's default, else OpenAI's."""

    n: Annotated[int, Field(ge=1, le=128)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(ge=1e-6, le=1)] | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=10)] = 1.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=MAX_BIASES)
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    prompt_logprobs: TopLogprobs | None = None
    bad_words: list[StopString] = Field(default_factory=list, fail_fast=True, max_length=MAX_BAD_WORDS)
    logprob_token_ids: TokenIds = Field(default_factory=list, max_length=MAX_LOGPROBS)
    seed: int | None = None
    stop: Stop | None = None
    stop_token_ids: TokenIds = Field(default_factory=list, max_length=MAX_STOP_IDS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Count = 0
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    truncation_side: Literal["left", "right"] = "left"
    return_token_ids: bool = False
    return_timings: bool = False
    cache_salt: CacheSalt = ""

    @property
    def may_call(self) -> bool:
        """Whether the answer may consist of calls of tools."""
        return False

    @property
    def sends_ids(self) -> bool:
        """Whether the answer is token ids, and no text."""
        return False

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_candidates(self) -> int:
        """Choices to make for each prompt."""
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
        """Choices to make for each prompt; the `n` likeliest are the answer."""
        return self.best_of or self.n

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One by one."""
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

    @property
    def sends_ids(self) -> bool:
        return True


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
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

    @property
    def text(self) -> str:
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "\n".join(part.text for part in self.content)

    @property
    def num_characters(self) -> int:
        """Characters of the text, and of the arguments of calls."""
        return len(self.text) + sum(len(call.function.arguments) for call in self.tool_calls or ())


Messages = Annotated[Several[ChatMessage], Field(min_length=1)]


class TemplateFields(Body):
    """How messages become a prompt."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    tools: list[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = "auto"

    @property
    def ending(self) -> Ending:
        """A prompt gets an answer's header, unless this is declined or something else is asked for."""
        default = not self.continue_final_message
        add_header = default if self.add_generation_prompt is None else self.add_generation_prompt
        return Ending(add_header, self.continue_final_message, self.chat_template_kwargs)

    @property
    def usable_tools(self) -> Sequence[Tool]:
        """Those that the model gets to know of."""
        return [] if self.tool_choice == "none" else self.tools


class ChatBody(GenerationBody, TemplateFields):
    """`POST /v1/chat/completions`."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    parallel_tool_calls: bool = True

    @property
    def may_call(self) -> bool:
        return bool(self.usable_tools)


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
