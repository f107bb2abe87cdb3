"""What clients may send to `/v1/responses`. Its other fields are for `fields.py`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from .schema import ChatMessage, ContentPart, TextPart
from .schema_base import TEXT_OR_LIST, TEXT_OR_OBJECT, CacheSalt, Count, Fields, Several, TermsFields, Text, TopLogprobs
from .structured_schema import JsonSchema, ResponseFormat
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

LOGPROBS = "message.output_text.logprobs"

Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
"""All but the first are of things that no answer here has."""


class ResponsePart(BaseModel):
    """A text, of either side."""

    model_config = ConfigDict(strict=True)

    type: Literal["input_text", "output_text"]
    text: str


PartedText = Annotated[Text | Annotated[Several[ResponsePart], Tag("<list>")], TEXT_OR_LIST]


class MessageItem(Fields):
    """An answer's own items may be sent back as they are."""

    type: Literal["message"] = "message"
    role: str
    content: PartedText

    def as_chat(self) -> ChatMessage:
        return ChatMessage(role=self.role, content=_chat_content(self.content))


class CallItem(Fields):
    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str

    def as_chat(self) -> ChatMessage:
        function = CalledFunction(name=self.name, arguments=self.arguments)
        return ChatMessage(role="assistant", tool_calls=[ToolCall(id=self.call_id, function=function)])


class CallOutputItem(Fields):
    type: Literal["function_call_output"]
    call_id: str
    output: PartedText

    def as_chat(self) -> ChatMessage:
        return ChatMessage(role="tool", content=_chat_content(self.output), tool_call_id=self.call_id)


def _kind_of_item(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in ("function_call", "function_call_output") else "<message>"


ResponseItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")],
    Discriminator(_kind_of_item),
]


class ResponseTool(Function):
    """As chat's, but with the function's fields beside the type."""

    type: Literal["function"]

    def as_chat(self) -> Tool:
        function = Function(name=self.name, description=self.description, parameters=self.parameters)
        return Tool(type="function", function=function)


class ResponseNamedTool(NamedFunction):
    type: Literal["function"]


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[ResponseNamedTool, Tag("<object>")],
    TEXT_OR_OBJECT,
]


class TextFormat(Fields):
    """As chat's, but with the schema's fields beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool = False

    @model_validator(mode="after")
    def _is_whole(self) -> "TextFormat":
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("the type json_schema needs name and schema")
        return self

    def as_chat(self) -> ResponseFormat:
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        return ResponseFormat(type=self.type, json_schema=JsonSchema(name=self.name or "", schema=self.schema_))


class ResponseText(Fields):
    format: TextFormat = TextFormat(type="text")


class ResponseStreamOptions(Fields):
    """Accepted, and nothing is obfuscated."""

    include_obfuscation: bool = False


class ResponseBody(TermsFields):
    """`POST /v1/responses`. `seed` and what follows are ours, as in chat."""

    input: Annotated[
        Text | Annotated[Several[ResponseItem], Field(min_length=1), Tag("<list>")],
        TEXT_OR_LIST,
    ]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    background: bool = False
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    include: Several[Includable] = Field(default_factory=list)
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: TopLogprobs | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    text: ResponseText = ResponseText()
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    tools: list[ResponseTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ResponseToolChoice = "auto"
    parallel_tool_calls: bool = True
    seed: int | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool = False
    min_tokens: Count = 0
    cache_salt: CacheSalt = ""

    @property
    def messages(self) -> Sequence[ChatMessage]:
        """The input, as chat knows it."""
        if isinstance(self.input, str):
            return [ChatMessage(role="user", content=self.input)]
        return [item.as_chat() for item in self.input]

    @property
    def chat_tool_choice(self) -> ToolChoice:
        if isinstance(self.tool_choice, str):
            return self.tool_choice
        return NamedTool(type="function", function=NamedFunction(name=self.tool_choice.name))

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in self.include


def _chat_content(content: str | list[ResponsePart]) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    return [TextPart(type="text", text=part.text) for part in content]
