"""What clients may send to Anthropic's `/v1/messages`. Its other fields are for `fields.py`."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import Discriminator, Field, Tag, model_validator

from ..common.schema_base import TEXT_OR_LIST, Body, CacheSalt, Count, Fields, Several, TermsFields, Text
from ..openai.schemas import ChatMessage, ContentPart, StopStringList, TextPart
from ..openai.tool_schemas import (
    MAX_TOOLS,
    CalledFunction,
    Function,
    FunctionName,
    NamedFunction,
    NamedTool,
    OtherTool,
    Tool,
    ToolCall,
    ToolChoice,
)


class TextBlock(Fields):
    """`cache_control` and `citations` are let pass."""

    type: Literal["text"]
    text: str


Content = Annotated[Text | Annotated[Several[TextBlock], Tag("<list>")], TEXT_OR_LIST]


class ToolUseBlock(Fields):
    """A call that an answer made."""

    type: Literal["tool_use"]
    id: str
    name: FunctionName
    input: dict[str, Any]

    def as_chat(self) -> ToolCall:
        arguments = json.dumps(self.input, ensure_ascii=False)
        return ToolCall(id=self.id, function=CalledFunction(name=self.name, arguments=arguments))


class ToolResultBlock(Fields):
    """What it gave; `is_error` is let pass, as the content says what went wrong."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Content = ""

    def as_chat(self) -> ChatMessage:
        return ChatMessage(role="tool", content=_chat_content(self.content), tool_call_id=self.tool_use_id)


class OtherBlock(Fields):
    """A block that says nothing to this model: how a model thought, or what another server's tools did."""

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
    role: Literal["user", "assistant", "system"]
    content: Annotated[Text | Annotated[Several[Block], Tag("<list>")], TEXT_OR_LIST]

    @property
    def chat_messages(self) -> list[ChatMessage]:
        """Each result of a call is a message of its own there, in front of what the user says."""
        if isinstance(self.content, str):
            return [ChatMessage(role=self.role, content=self.content)]
        results = [block.as_chat() for block in self.content if isinstance(block, ToolResultBlock)]
        texts = [block for block in self.content if isinstance(block, TextBlock)]
        calls = [block.as_chat() for block in self.content if isinstance(block, ToolUseBlock)]
        if results and not texts and not calls:
            return results
        return [*results, ChatMessage(role=self.role, content=_chat_content(texts), tool_calls=calls or None)]


class AnthropicTool(Fields):
    """A function."""

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = False

    def as_chat(self) -> Tool:
        function = Function(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )
        return Tool(type="function", function=function)


class AnthropicOtherTool(OtherTool):
    """A tool of Anthropic's own, which its servers run or its models know."""

    name: str = ""


def _kind_of_tool(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<other>" if isinstance(kind, str) and kind != "custom" else "<custom>"


AnyAnthropicTool = Annotated[
    Annotated[AnthropicTool, Tag("<custom>")] | Annotated[AnthropicOtherTool, Tag("<other>")],
    Discriminator(_kind_of_tool),
]


class OutputFormat(Fields):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    """What the answer has to keep to; `effort` is let pass."""

    format: OutputFormat | None = None


class AnthropicToolChoice(Fields):
    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: FunctionName | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _names_its_tool(self) -> "AnthropicToolChoice":
        if self.type == "tool" and self.name is None:
            raise ValueError("the type tool needs name")
        return self

    def as_chat(self) -> ToolChoice:
        if self.type == "tool":
            return NamedTool(type="function", function=NamedFunction(name=self.name or ""))
        return "required" if self.type == "any" else self.type


class CountTokensBody(Body):
    """`POST /v1/messages/count_tokens`."""

    messages: Annotated[Several[AnthropicMessage], Field(min_length=1)]
    system: Content | None = None
    tools: list[AnyAnthropicTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: AnthropicToolChoice = AnthropicToolChoice()
    cache_control: dict[str, Any] | None = None

    @property
    def chat_messages(self) -> list[ChatMessage]:
        """All of it, as chat knows it."""
        system = [] if self.system is None else [ChatMessage(role="system", content=_chat_content(self.system))]
        return [*system, *(each for message in self.messages for each in message.chat_messages)]

    @property
    def functions(self) -> list[AnthropicTool]:
        """The tools that can be called; the server runs none itself."""
        return [tool for tool in self.tools if isinstance(tool, AnthropicTool)]

    @property
    def dropped(self) -> Iterator[str]:
        """What is left out, as warnings name it; thinking is left out without a word, as in Anthropic's own API."""
        for index, tool in enumerate(self.tools):
            if isinstance(tool, AnthropicOtherTool):
                yield f"tools[{index}]: {tool.type}"
        for index, message in enumerate(self.messages):
            for block in message.content if isinstance(message.content, list) else ():
                if isinstance(block, OtherBlock) and block.type not in _THINKING:
                    yield f"messages[{index}]: {block.type}"

    @property
    def wants_cache(self) -> bool:
        """Whether the client marks a prefix to be cached, and so counts what was."""
        contents = [self.system, *(message.content for message in self.messages)]
        blocks = [block for content in contents if isinstance(content, list) for block in content]
        marked = ("cache_control" in (part.model_extra or {}) for part in (*blocks, *self.tools))
        return self.cache_control is not None or any(marked)

    @property
    def is_begun(self) -> bool:
        """Whether the client has put the first words into the assistant's mouth."""
        return self.messages[-1].role == "assistant"


class MessagesBody(CountTokensBody, TermsFields):
    """`POST /v1/messages`. `seed` and what follows are ours, as in chat."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    stream: bool = False
    output_config: OutputConfig = OutputConfig()
    output_format: OutputFormat | None = None
    stop_sequences: StopStringList = Field(default_factory=list)
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    seed: int | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool = False
    min_tokens: Count = 0
    cache_salt: CacheSalt = ""


def _chat_content(content: str | list[TextBlock]) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    return [TextPart(type="text", text=block.text) for block in content]
