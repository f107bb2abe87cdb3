"""What clients may send to Anthropic's `/v1/messages`. Its other fields are for `fields.py`."""

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from .schema import MAX_STOP_STRINGS, ChatMessage, ContentPart, StopString, TextPart
from .schema_base import TEXT_OR_LIST, Body, CacheSalt, Count, Fields, Several, TermsFields, Text
from .tools_schema import (
    MAX_TOOLS,
    CalledFunction,
    Function,
    FunctionName,
    NamedFunction,
    NamedTool,
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


def _kind_of_block(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in ("tool_use", "tool_result") else "<text>"


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")],
    Discriminator(_kind_of_block),
]


class AnthropicMessage(Fields):
    role: Literal["user", "assistant"]
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
    """A function; tools that Anthropic's own servers run are refused."""

    type: Literal["custom"] = "custom"
    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any]

    def as_chat(self) -> Tool:
        function = Function(name=self.name, description=self.description, parameters=self.input_schema)
        return Tool(type="function", function=function)


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
    tools: list[AnthropicTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: AnthropicToolChoice = AnthropicToolChoice()

    @property
    def chat_messages(self) -> list[ChatMessage]:
        """All of it, as chat knows it."""
        system = [] if self.system is None else [ChatMessage(role="system", content=_chat_content(self.system))]
        return [*system, *(each for message in self.messages for each in message.chat_messages)]

    @property
    def is_begun(self) -> bool:
        """Whether the client has put the first words into the assistant's mouth."""
        return self.messages[-1].role == "assistant"


class MessagesBody(CountTokensBody, TermsFields):
    """`POST /v1/messages`. `seed` and what follows are ours, as in chat."""

    max_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    stream: bool = False
    stop_sequences: list[StopString] = Field(default_factory=list, max_length=MAX_STOP_STRINGS)
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
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
