"""Schemas of Anthropic's `/v1/messages`, and the rules for fields that no schema names, which `BodyCheck` applies."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from ...errors.validation_errors import ForeignName
from ...schemas.body import TEXT_OR_LIST, Body, CacheSalt, Fields, Several, Text, type_of
from ...schemas.field_rules import (
    CALL_RULES,
    GENERATION_IGNORED,
    LEFT_OUT,
    LENGTH_FIELDS,
    MARKS,
    PART_RULES,
    SCHEMA_FIELDS,
    TOOL_RULES,
    FieldRules,
    ignored,
    with_hints,
)
from ...schemas.generation_fields import SamplingFields, StopStringList, number
from ...schemas.output_formats import MAX_TOOLS, LongFunctionName, OtherTool
from ...text.chat_format import ConversationMessage, FunctionCall, FunctionTool, ToolOptions

_MESSAGES_REFUSED: Final[Mapping[str, ForeignName]] = {
    **with_hints(
        {
            LENGTH_FIELDS: "use max_tokens",
            SCHEMA_FIELDS: "use output_config.format",
            "input prompt": "use messages",
            "instructions": "use system",
            "stop": "use stop_sequences",
            "top_logprobs": "use it in /v1/chat/completions",
        }
    ),
    "compaction": ForeignName("send the whole conversation"),
    "container": ForeignName(),
    "mcp_servers": ForeignName("the server calls no other servers", ([],)),
    "parallel_tool_calls": ForeignName("use tool_choice.disable_parallel_tool_use", (True,)),
    "thread": ForeignName("send the whole conversation, and give thread: false to a tool runner of Anthropic's SDKs"),
}

_MESSAGES_IGNORED: Final = GENERATION_IGNORED | ignored(
    "anthropic_beta anthropic_version betas billing_policy "
    "cache_control context_management diagnostics fallback_credit_token fallbacks inference_geo speed "
    "stream_options user_profile_id workspace_id"
)

MESSAGES_RULES: Final = FieldRules({**_MESSAGES_IGNORED, **_MESSAGES_REFUSED})

COUNT_TOKENS_RULES: Final = FieldRules(
    {
        **_MESSAGES_IGNORED,
        **ignored("max_tokens output_config output_format stop_sequences stream temperature top_k top_p"),
        **{name: _MESSAGES_REFUSED[name] for name in ("container", "mcp_servers")},
    }
)
"""Rules of bodies whose tokens are counted, which may contain all fields of a message's body."""


class TextBlock(Fields):
    """A text. `cache_control` and `citations` are ignored."""

    field_rules: ClassVar[FieldRules] = PART_RULES

    type: Literal["text"]
    """Kind of block."""

    text: str
    """Text of the block."""


Content = Annotated[Text | Annotated[Several[TextBlock], Tag("<list>")], TEXT_OR_LIST]


class PlainTextSource(Fields):
    """The text of a document."""

    type: Literal["text"]
    """Kind of source. PDFs and files by their ids are not read."""

    media_type: Literal["text/plain"] = "text/plain"
    """Media type of the text."""

    data: str
    """The text."""

    @property
    def text(self) -> str:
        """The text."""
        return self.data


class ContentSource(Fields):
    """The text of a document, in blocks."""

    type: Literal["content"]
    """Kind of source."""

    content: Content
    """The text, or blocks of it."""

    @property
    def text(self) -> str:
        """The texts of all blocks, joined by line breaks."""
        return _joined(_content(self.content))


def _kind_of_source(value: Any) -> str:
    return "<content>" if type_of(value) == "content" else "<plain>"


class DocumentBlock(Fields):
    """A document of text, which is read as text. `citations` are ignored: the output has none."""

    field_rules: ClassVar[FieldRules] = PART_RULES

    type: Literal["document"]
    """Kind of block."""

    source: Annotated[
        Annotated[PlainTextSource, Tag("<plain>")] | Annotated[ContentSource, Tag("<content>")],
        Discriminator(_kind_of_source),
    ]
    """Text of the document."""

    title: str | None = None
    """Title of the document, which the model reads before the text."""

    context: str | None = None
    """Facts about the document, which the model reads before the text."""

    @property
    def text(self) -> str:
        """Title, context and text, each in a paragraph."""
        return "\n\n".join(filter(None, (self.title, self.context, self.source.text)))


class SearchResultBlock(Fields):
    """A result of the client's own search, which is read as text. `citations` are ignored: the output has none."""

    field_rules: ClassVar[FieldRules] = PART_RULES

    type: Literal["search_result"]
    """Kind of block."""

    source: str
    """Source of the result, which the model reads."""

    title: str
    """Title of the result, which the model reads."""

    content: Several[TextBlock]
    """Text of the result."""

    @property
    def text(self) -> str:
        """Title, source and text, each in a paragraph."""
        return "\n\n".join(filter(None, (self.title, self.source, _joined(_content(self.content)))))


_READ_TAGS: Final = {"document": "<document>", "search_result": "<search_result>"}


def _kind_of_result(value: Any) -> str:
    return _READ_TAGS.get(type_of(value) or "", "<text>")


ReadBlock = TextBlock | DocumentBlock | SearchResultBlock
"""A block whose text the model reads."""

ResultBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[DocumentBlock, Tag("<document>")]
    | Annotated[SearchResultBlock, Tag("<search_result>")],
    Discriminator(_kind_of_result),
]
"""A block of a tool's result."""

ResultContent = Annotated[Text | Annotated[Several[ResultBlock], Tag("<list>")], TEXT_OR_LIST]


class ToolUseBlock(Fields):
    """A call that an assistant's message made."""

    field_rules: ClassVar[FieldRules] = CALL_RULES

    type: Literal["tool_use"]
    """Kind of block."""

    id: str
    """Id of the call, which its result names."""

    name: LongFunctionName
    """Name of the function."""

    input: dict[str, Any]
    """Arguments of the call."""

    def as_call(self) -> FunctionCall:
        """Returns the call with its arguments as JSON text."""
        return FunctionCall(self.id, self.name, json.dumps(self.input, ensure_ascii=False))


class ToolResultBlock(Fields):
    """The result of a call. `is_error` is ignored, as the content says what went wrong."""

    field_rules: ClassVar[FieldRules] = FieldRules(MARKS | ignored("is_error toolset_name"))

    type: Literal["tool_result"]
    """Kind of block."""

    tool_use_id: str
    """Id of the call whose result this is."""

    content: ResultContent = ""
    """Result as text, or blocks of text, documents and search results."""

    def as_message(self) -> ConversationMessage:
        """Returns a message with the result."""
        return ConversationMessage("tool", _content(self.content), call_id=self.tool_use_id)


class OtherBlock(Fields):
    """A block that is left out: how a model thought, or what another server's tools did."""

    field_rules: ClassVar[FieldRules] = LEFT_OUT

    type: Literal[
        "bash_code_execution_tool_result",
        "code_execution_tool_result",
        "compaction",
        "mcp_tool_result",
        "mcp_tool_use",
        "redacted_thinking",
        "server_tool_use",
        "text_editor_code_execution_tool_result",
        "thinking",
        "tool_search_tool_result",
        "web_fetch_tool_result",
        "web_search_tool_result",
    ]
    """Kind of block, which is left out and, unless it is thinking, reported."""


_THINKING: Final = ("redacted_thinking", "thinking")

_BLOCK_TAGS: Final = {
    **_READ_TAGS,
    "tool_use": "<tool_use>",
    "tool_result": "<tool_result>",
    **dict.fromkeys(get_args(OtherBlock.model_fields["type"].annotation), "<other>"),
}


def _kind_of_block(value: Any) -> str:
    return _BLOCK_TAGS.get(type_of(value) or "", "<text>")


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[DocumentBlock, Tag("<document>")]
    | Annotated[SearchResultBlock, Tag("<search_result>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[OtherBlock, Tag("<other>")],
    Discriminator(_kind_of_block),
]


class AnthropicMessage(Fields):
    """A message."""

    role: Literal["user", "assistant", "system"]
    """Role of the author, in any order. If the last one is the assistant, the output continues its message."""

    content: Annotated[Text | Annotated[Several[Block], Tag("<list>")], TEXT_OR_LIST]
    """Text, or blocks of text, documents, search results, calls and their results."""

    def as_messages(self) -> list[ConversationMessage]:
        """Returns a separate message for each result of a call, and one message with the texts and calls."""
        if isinstance(self.content, str):
            return [ConversationMessage(self.role, self.content)]
        results = [block.as_message() for block in self.content if isinstance(block, ToolResultBlock)]
        texts = [block for block in self.content if isinstance(block, ReadBlock)]
        calls = tuple(block.as_call() for block in self.content if isinstance(block, ToolUseBlock))
        if results and not texts and not calls:
            return results
        return [*results, ConversationMessage(self.role, _content(texts), calls)]


class AnthropicTool(Fields):
    """A function."""

    field_rules: ClassVar[FieldRules] = TOOL_RULES

    type: Literal["custom"] = "custom"
    """Kind of tool."""

    name: LongFunctionName
    """Name of the function."""

    description: str | None = None
    """Purpose of the function, which the model reads."""

    input_schema: dict[str, Any]
    """JSON schema of the arguments, an object."""

    strict: bool = False
    """Whether a keyword of `input_schema` that cannot be enforced is a 400. Otherwise it is dropped and reported. A
    bound that cannot be compiled is widened and reported in both cases."""

    def as_tool(self) -> FunctionTool:
        """Returns the tool."""
        return FunctionTool(self.name, self.description, self.input_schema, self.strict)


def _kind_of_tool(value: Any) -> str:
    return "<custom>" if type_of(value) in (None, "custom") else "<other>"


AnyAnthropicTool = Annotated[
    Annotated[AnthropicTool, Tag("<custom>")] | Annotated[OtherTool, Tag("<other>")],
    Discriminator(_kind_of_tool),
]


class OutputFormat(Fields):
    """A JSON schema of the text."""

    type: Literal["json_schema"]
    """Kind of format."""

    schema_: dict[str, Any] = Field(alias="schema")
    """JSON schema of the text. A keyword that cannot be enforced is dropped and reported, and a bound that cannot be
    compiled is widened and reported."""


class OutputConfig(Fields):
    """Constraint on the output. `effort` is ignored."""

    field_rules: ClassVar[FieldRules] = FieldRules(ignored("effort task_budget"))

    format: OutputFormat | None = None
    """Format of the text; any text by default."""


class AnthropicToolChoice(Fields):
    """Whether and which tools the model may call."""

    type: Literal["auto", "any", "tool", "none"] = "auto"
    """Whether the model may (`auto`), must (`any`) or must not call a function, or must call the one named."""

    name: LongFunctionName | None = None
    """Name of the function, for the type `tool`."""

    disable_parallel_tool_use: bool = False
    """Whether a response may hold only one call."""

    @model_validator(mode="after")
    def _names_its_tool(self) -> "AnthropicToolChoice":
        if self.type == "tool" and self.name is None:
            raise ValueError("the type tool needs name")
        return self

    def as_options(self, tools: list[FunctionTool]) -> ToolOptions:
        """Returns the choice among these tools."""
        parallel = not self.disable_parallel_tool_use
        match self.type:
            case "tool":
                return ToolOptions(tools, "required", [self.name or ""], parallel=False)
            case "any":
                return ToolOptions(tools, "required", parallel=parallel)
            case "auto" | "none":
                return ToolOptions(tools, self.type, parallel=parallel)


class CountTokensBody(Body):
    """Body of `POST /v1/messages/count_tokens`."""

    field_rules: ClassVar[FieldRules] = COUNT_TOKENS_RULES

    messages: Annotated[Several[AnthropicMessage], Field(min_length=1)]
    """Messages of the conversation, oldest first."""

    system: Content | None = None
    """System text in front of the conversation."""

    tools: list[AnyAnthropicTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    """Functions that the model may call. Anthropic's own tools are left out and reported."""

    tool_choice: AnthropicToolChoice = AnthropicToolChoice()
    """Whether the model may or must call a function, or which one."""

    from_state: str | None = None
    """Id of a saved state that the messages continue. `messages` are only the messages after the state."""

    def as_messages(self) -> list[ConversationMessage]:
        """Returns the system text and all messages."""
        system = [] if self.system is None else [ConversationMessage("system", _content(self.system))]
        return [*system, *(each for message in self.messages for each in message.as_messages())]

    @property
    def functions(self) -> list[AnthropicTool]:
        """The tools that the model may call. The server does not run tools itself."""
        return [tool for tool in self.tools if isinstance(tool, AnthropicTool)]

    @property
    def dropped(self) -> Iterator[str]:
        """Names of the parts that are left out, for warnings. Thinking is left out without a warning, as in Anthropic's
        API.
        """
        for index, tool in enumerate(self.tools):
            if isinstance(tool, OtherTool):
                yield f"tools[{index}]: {tool.type}"
        for index, message in enumerate(self.messages):
            for block in message.content if isinstance(message.content, list) else ():
                if isinstance(block, OtherBlock) and block.type not in _THINKING:
                    yield f"messages[{index}]: {block.type}"


class MessagesBody(CountTokensBody, SamplingFields):
    """Body of `POST /v1/messages`. `min_p` and the fields of `SamplingFields` are extensions, as in chat.

    The bounds of `temperature` and `top_k` are Anthropic's.
    """

    field_rules: ClassVar[FieldRules] = MESSAGES_RULES

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    """Maximum number of tokens to generate."""

    stream: bool = False
    """Whether the response is a stream of server-sent events."""

    output_config: OutputConfig = OutputConfig()
    """Constraint of the output to a JSON schema."""

    output_format: OutputFormat | None = None
    """Constraint of the output to a JSON schema; Anthropic's older name."""

    stop_sequences: StopStringList = Field(default_factory=list)
    """Strings at which the output ends. They are cut off."""

    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    """Divisor of the logits; 0 always takes the most likely token. The default is the checkpoint's, or 1."""

    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Number of most likely tokens to keep, with ties of the last; 0 keeps all. The default is the checkpoint's, or
    0."""

    cache_salt: CacheSalt = ""
    """Name of a separate prefix cache: requests reuse states only of requests with the same salt."""

    top_p: float | None = number("top_p")
    min_p: float | None = number("min_p")


def _content(content: str | Sequence[ReadBlock]) -> str | tuple[str, ...]:
    return content if isinstance(content, str) else tuple(block.text for block in content)


def _joined(content: str | tuple[str, ...]) -> str:
    return content if isinstance(content, str) else "\n".join(content)
