"""Schemas of Anthropic's `/v1/messages`. Fields that no schema names are checked by `unknown_fields.py`."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from ...generation.conversation import ConversationMessage, FunctionCall, FunctionTool, ToolOptions
from ..common.field_rules import MESSAGES_RULES, FieldRules
from ..common.sampling_fields import SamplingFields, with_numbers
from ..common.schema_base import TEXT_OR_LIST, Body, CacheSalt, Fields, Several, Text
from ..openai.schemas import StopStringList
from ..openai.tool_schemas import MAX_TOOLS, FunctionName, OtherTool


class TextBlock(Fields):
    """A text. `cache_control` and `citations` are ignored."""

    type: Literal["text"]
    text: str


Content = Annotated[Text | Annotated[Several[TextBlock], Tag("<list>")], TEXT_OR_LIST]


class ToolUseBlock(Fields):
    """A call that an assistant's message made."""

    type: Literal["tool_use"]
    id: str
    name: FunctionName
    input: dict[str, Any]

    def as_call(self) -> FunctionCall:
        """Returns the call with its arguments as JSON text."""
        return FunctionCall(self.id, self.name, json.dumps(self.input, ensure_ascii=False))


class ToolResultBlock(Fields):
    """The result of a call. `is_error` is ignored, as the content says what went wrong."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Content = ""

    def as_message(self) -> ConversationMessage:
        """Returns a message with the result."""
        return ConversationMessage("tool", _content(self.content), call_id=self.tool_use_id)


class OtherBlock(Fields):
    """A block that is left out: how a model thought, or what another server's tools did."""

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


_THINKING: Final = ("redacted_thinking", "thinking")
_BLOCK_TAGS: Final = {
    "tool_use": "<tool_use>",
    "tool_result": "<tool_result>",
    **dict.fromkeys(get_args(OtherBlock.model_fields["type"].annotation), "<other>"),
}


def _kind_of_block(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return _BLOCK_TAGS.get(kind, "<text>") if isinstance(kind, str) else "<text>"


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[OtherBlock, Tag("<other>")],
    Discriminator(_kind_of_block),
]


class AnthropicMessage(Fields):
    """A message."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[Text | Annotated[Several[Block], Tag("<list>")], TEXT_OR_LIST]

    def as_messages(self) -> list[ConversationMessage]:
        """Returns a message of its own for each result of a call, and one with the texts and calls."""
        if isinstance(self.content, str):
            return [ConversationMessage(self.role, self.content)]
        results = [block.as_message() for block in self.content if isinstance(block, ToolResultBlock)]
        texts = [block for block in self.content if isinstance(block, TextBlock)]
        calls = tuple(block.as_call() for block in self.content if isinstance(block, ToolUseBlock))
        if results and not texts and not calls:
            return results
        return [*results, ConversationMessage(self.role, _content(texts), calls)]


class AnthropicTool(Fields):
    """A function."""

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = False

    def as_tool(self) -> FunctionTool:
        """Returns the tool that the function is."""
        return FunctionTool(self.name, self.description, self.input_schema, self.strict)


class AnthropicOtherTool(OtherTool):
    """A tool that Anthropic's servers run or its models know."""

    name: str = ""


def _kind_of_tool(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<other>" if isinstance(kind, str) and kind != "custom" else "<custom>"


AnyAnthropicTool = Annotated[
    Annotated[AnthropicTool, Tag("<custom>")] | Annotated[AnthropicOtherTool, Tag("<other>")],
    Discriminator(_kind_of_tool),
]


class OutputFormat(Fields):
    """A JSON schema of the text."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    """Constraint on the output. `effort` is ignored."""

    format: OutputFormat | None = None


class AnthropicToolChoice(Fields):
    """Whether and which tools the model may call."""

    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: FunctionName | None = None
    disable_parallel_tool_use: bool = False

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

    field_rules: ClassVar[FieldRules] = MESSAGES_RULES

    messages: Annotated[Several[AnthropicMessage], Field(min_length=1)]
    system: Content | None = None
    tools: list[AnyAnthropicTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: AnthropicToolChoice = AnthropicToolChoice()
    cache_control: dict[str, Any] | None = None

    def as_messages(self) -> list[ConversationMessage]:
        """Returns the system text and all messages."""
        system = [] if self.system is None else [ConversationMessage("system", _content(self.system))]
        return [*system, *(each for message in self.messages for each in message.as_messages())]

    @property
    def functions(self) -> list[AnthropicTool]:
        """The tools that the model may call; the server runs none itself."""
        return [tool for tool in self.tools if isinstance(tool, AnthropicTool)]

    @property
    def dropped(self) -> Iterator[str]:
        """Names of what is left out, for warnings. Thinking is left out without one, as in Anthropic's own API."""
        for index, tool in enumerate(self.tools):
            if isinstance(tool, AnthropicOtherTool):
                yield f"tools[{index}]: {tool.type}"
        for index, message in enumerate(self.messages):
            for block in message.content if isinstance(message.content, list) else ():
                if isinstance(block, OtherBlock) and block.type not in _THINKING:
                    yield f"messages[{index}]: {block.type}"

    @property
    def wants_cache(self) -> bool:
        """Whether the client marks a prefix to be cached, and so reads the counts of cached tokens."""
        contents = [self.system, *(message.content for message in self.messages)]
        blocks = [block for content in contents if isinstance(content, list) for block in content]
        marked = ("cache_control" in (part.model_extra or {}) for part in (*blocks, *self.tools))
        return self.cache_control is not None or any(marked)

    @property
    def continues_message(self) -> bool:
        """Whether the last message is the assistant's, and the output continues it."""
        return self.messages[-1].role == "assistant"


@with_numbers("top_p", "min_p")
class MessagesBody(CountTokensBody, SamplingFields):
    """Body of `POST /v1/messages`. `min_p` and the fields of `SamplingFields` are extensions, as in chat.

    The bounds of `temperature` and `top_k` are Anthropic's.
    """

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    stream: bool = False
    output_config: OutputConfig = OutputConfig()
    output_format: OutputFormat | None = None
    stop_sequences: StopStringList = Field(default_factory=list)
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    cache_salt: CacheSalt = ""


def _content(content: str | list[TextBlock]) -> str | tuple[str, ...]:
    return content if isinstance(content, str) else tuple(block.text for block in content)
