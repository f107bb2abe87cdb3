"""Fields of completions and chats, used by bodies of HTTP requests and calls of the Python API.

Null is equivalent to omitting a field. `BodyCheck` checks fields that no schema names. Numbers have the bounds of the
engine's table, its defaults and descriptions.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, cast

from pydantic import AfterValidator, Discriminator, Field, Tag

from ...engine import MAX_BIASES, MAX_LOGPROBS, MAX_STOP_IDS, SAMPLING_FIELDS
from .body import (
    MAX_STOP_CHARACTERS,
    Body,
    CacheSalt,
    Count,
    Fields,
    JsonObject,
    SchedulingFields,
    Several,
    Text,
    TokenIds,
    TopLogprobs,
    is_list,
    type_of,
    union,
)
from .field_rules import GENERATION_RULES, MESSAGE_RULES, PART_RULES, FieldRules
from .output_formats import MAX_TOOLS, StructuredFields, Tool, ToolCall, ToolChoice

NUMBERS: Final = tuple(name for name, row in SAMPLING_FIELDS.items() if row.request is not None)
"""Names of the numbers that a body may have."""


class SamplingFields(SchedulingFields):
    """Fields of all bodies that generate. Each body declares its numbers with `number`."""

    seed: int | None = None
    """Seed of all randomness: on CPU, the same request with the same seed gives the same tokens. Random by default."""

    ignore_eos: bool = False
    """Whether generation continues past end tokens. It then needs a limit of tokens."""

    min_tokens: Count = 0
    """Number of tokens before which no end or stop token is chosen."""


def number(name: str) -> Any:
    """Returns the field of a number in the engine's table, such as `top_p: float | None = number("top_p")`.

    The default is None if the checkpoint may have another default.
    """
    row = SAMPLING_FIELDS[name]
    bounds = {} if row.request is None else row.request.bounds
    if row.checkpoint is None:
        return Field(row.default, description=row.description, **bounds)
    description = f"{row.description} The default is the checkpoint's, or {row.default:g}."
    return Field(None, description=description, **bounds)


MAX_STOP_STRINGS: Final = 64
"""Maximum number of stop strings; OpenAI allows 4."""

MAX_TOTAL_STOP_CHARACTERS: Final = 4 * MAX_STOP_CHARACTERS
"""Characters of all stop strings of a request together."""

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
    return "<refusal>" if type_of(value) == "refusal" else "<text>"


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


class TextPart(JsonObject):
    field_rules: ClassVar[FieldRules] = PART_RULES

    type: Literal["text"]
    """Kind of part."""

    text: str
    """Text of the part."""


class Prediction(Fields):
    """Text that the output is expected to have. Parts of it are joined by line breaks, as in messages."""

    type: Literal["content"]
    """Kind of prediction."""

    content: Annotated[
        Text | Annotated[Several[TextPart], Tag("<list>")],
        union(is_list, "must be a string or an array of parts"),
    ]
    """Text, or parts of a text."""

    @property
    def text(self) -> str:
        """The whole text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class GenerationFields(StructuredFields, SamplingFields):
    """Fields of all requests that generate. None means the checkpoint's default, or OpenAI's if the checkpoint has
    none.
    """

    field_rules: ClassVar[FieldRules] = GENERATION_RULES

    n: Annotated[int, Field(ge=1, le=128)] = 1
    """Number of choices for each prompt. The prompt is prefilled once, and each choice takes a separate slot."""

    max_tokens: Count | None = None
    """Maximum number of tokens to generate. The default is 16 in `/v1/completions`, and no limit elsewhere unless the
    checkpoint has one."""

    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=MAX_BIASES)
    """Number to add to the logit of each token id, before penalties. Keys are ids as strings."""

    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    """The only token ids that may be chosen; all by default."""

    prompt_logprobs: TopLogprobs | None = None
    """Number of alternatives to report for each prompt token. Not with `stream`, except for token ids."""

    bad_words: list[StopString] = Field(default_factory=list, fail_fast=True, max_length=MAX_BAD_WORDS)
    """Strings whose tokens are never generated in sequence, with and without a space in front."""

    logprob_token_ids: TokenIds = Field(default_factory=list, max_length=MAX_LOGPROBS)
    """Token ids whose log-probabilities are reported with each generated token. It needs `logprobs`."""

    stop: Stop | None = None
    """String or strings at which the output ends. They are cut off, unless `include_stop_str_in_output` is set."""

    stop_token_ids: TokenIds = Field(default_factory=list, max_length=MAX_STOP_IDS)
    """Token ids at which the output ends, in addition to the checkpoint's end tokens."""

    include_stop_str_in_output: bool = False
    """Whether the text keeps the stop string that ended it."""

    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    """Maximum number of prompt tokens to keep; -1 keeps all, as by default. BOS is always kept."""

    truncation_side: Literal["left", "right"] = "left"
    """Side from which `truncate_prompt_tokens` removes tokens; `left` keeps the last tokens."""

    return_token_ids: bool = False
    """Whether the response has the token ids of the prompt and of each choice."""

    cache_salt: CacheSalt = ""
    """Name of a separate prefix cache: requests reuse states only of requests with the same salt."""

    prediction: Prediction | None = None
    """Text that the output is expected to begin with. With speculative decoding, tokens are drafted from it, which
    changes no output; otherwise it has no effect."""

    temperature: float | None = number("temperature")
    top_k: int | None = number("top_k")
    top_p: float | None = number("top_p")
    min_p: float | None = number("min_p")
    typical_p: float | None = number("typical_p")
    frequency_penalty: float = number("frequency_penalty")
    presence_penalty: float = number("presence_penalty")
    repetition_penalty: float = number("repetition_penalty")


class CompletionFields(GenerationFields):
    """Fields of a completion of prompts."""

    prompt: Prompt
    """Prompt or prompts: a string, strings, token ids or lists of token ids."""

    echo: bool = False
    """Whether the text begins with the prompt. With `logprobs`, the prompt's tokens are scored too."""

    logprobs: TopLogprobs | None = None
    """Number of alternatives to report for each token; 0 reports only the token's own, the default nothing."""

    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    """Number of candidates, of which the `n` most likely are returned; `n` by default. Not more with `stream`."""

    add_special_tokens: bool = True
    """Whether a BOS is put in front of prompts that are texts."""

    from_state: str | None = None
    """Id of a saved state that the prompt continues."""

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


class RefusalPart(JsonObject):
    field_rules: ClassVar[FieldRules] = PART_RULES

    type: Literal["refusal"]
    """Kind of part."""

    refusal: str
    """Text of the refusal, which becomes part of the prompt."""

    @property
    def text(self) -> str:
        """The refusal's text."""
        return self.refusal


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(kind_of_part),
]


class ChatMessage(JsonObject):
    """A message. Parts of text are joined by line breaks; fields such as `name` are ignored."""

    field_rules: ClassVar[FieldRules] = MESSAGE_RULES

    role: str
    """Role of the author: system, developer, user, assistant or tool, in any order."""

    content: (
        Annotated[
            Text | Annotated[Several[ContentPart], Tag("<list>")],
            union(is_list, "must be a string or an array of parts"),
        ]
        | None
    ) = None
    """Text, or parts of a text."""

    refusal: str | None = None
    """Text of the assistant's refusal, which becomes part of the prompt like `content`."""

    tool_calls: Several[ToolCall] | None = None
    """Calls that the assistant made."""

    tool_call_id: str | None = None
    """Id of the call whose result the message is, for the role tool."""


Messages = Annotated[Several[ChatMessage], Field(min_length=1)]


class TemplateFields(Body):
    """Fields that decide how messages become a prompt."""

    add_generation_prompt: bool | None = None
    """Whether the prompt ends with the header of an assistant's message; the default is yes, unless
    `continue_final_message` is set."""

    continue_final_message: bool = False
    """Whether the output continues the last message instead of answering it."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Variables for the checkpoint's chat template. Gemma's own format has none."""

    tools: list[Tool] = Field(default_factory=list, max_length=MAX_TOOLS)
    """Functions that the model may call."""

    tool_choice: ToolChoice = "auto"
    """Whether the model may or must call a function, or which one."""


class ChatFields(GenerationFields, TemplateFields):
    """Fields of a chat."""

    messages: Messages
    """Messages of the conversation, oldest first."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Maximum number of tokens to generate; OpenAI's older name for `max_completion_tokens`."""

    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Maximum number of tokens to generate. The default is the checkpoint's, or no limit."""

    logprobs: bool = False
    """Whether to report the log-probability of each generated token, before temperature and masks."""

    top_logprobs: TopLogprobs | None = None
    """Number of alternatives to report for each token. It needs `logprobs`."""

    parallel_tool_calls: bool = True
    """Whether a response may hold several calls."""

    from_state: str | None = None
    """Id of a saved state that the messages continue. `messages` are only the messages after the state."""
