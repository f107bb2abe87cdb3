"""What clients may send to `/v1/responses`. Its other fields are for `fields.py`."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from ..common.schema_base import TEXT_OR_LIST, CacheSalt, Count, Fields, Several, TermsFields, Text, TopLogprobs, union
from .response_format_schemas import JsonSchema, ResponseFormat
from .schemas import ChatMessage, ContentPart, RefusalPart, TextPart, kind_of_part
from .tool_schemas import (
    MAX_TOOLS,
    AllowedFunctions,
    AllowedTools,
    CalledFunction,
    Function,
    FunctionName,
    NamedFunction,
    NamedTool,
    OtherTool,
    Tool,
    ToolCall,
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


class ResponseTextPart(BaseModel):
    """A text, of either side."""

    model_config = ConfigDict(strict=True)

    type: Literal["input_text", "output_text"]
    text: str


ResponsePart = Annotated[
    Annotated[ResponseTextPart, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(kind_of_part),
]

PartedText = Annotated[Text | Annotated[Several[ResponsePart], Tag("<list>")], TEXT_OR_LIST]


class MessageItem(Fields):
    """An answer's own items may be sent back as they are."""

    type: Literal["message"] = "message"
    role: str
    content: PartedText

    def as_chat(self) -> list[ChatMessage]:
        return [ChatMessage(role=self.role, content=_chat_content(self.content))]


class CallItem(Fields):
    type: Literal["function_call"]
    call_id: str
    name: FunctionName
    arguments: str

    def as_chat(self) -> list[ChatMessage]:
        function = CalledFunction(name=self.name, arguments=self.arguments)
        return [ChatMessage(role="assistant", tool_calls=[ToolCall(id=self.call_id, function=function)])]


class CallOutputItem(Fields):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: PartedText

    def as_chat(self) -> list[ChatMessage]:
        return [ChatMessage(role="tool", content=_chat_content(self.output), tool_call_id=self.call_id)]


class CustomCallItem(Fields):
    """A call of a tool that takes any text, made by another server."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: FunctionName
    input: str

    def as_chat(self) -> list[ChatMessage]:
        arguments = json.dumps({"input": self.input}, ensure_ascii=False)
        return CallItem(type="function_call", call_id=self.call_id, name=self.name, arguments=arguments).as_chat()


class ItemReference(Fields):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"]
    id: str


class OtherItem(Fields):
    """An item that says nothing to this model: what another server's tools did, or how a model reasoned."""

    type: Literal[
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "computer_call",
        "computer_call_output",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "reasoning",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    ]

    def as_chat(self) -> list[ChatMessage]:
        return []


_OTHER_ITEMS: Final = frozenset(get_args(OtherItem.model_fields["type"].annotation))
_ITEM_TAGS: Final = {
    "function_call": "<function_call>",
    "function_call_output": "<function_call_output>",
    "custom_tool_call": "<custom_tool_call>",
    "custom_tool_call_output": "<function_call_output>",
    "item_reference": "<item_reference>",
    **dict.fromkeys(_OTHER_ITEMS, "<other>"),
}


def _kind_of_item(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return _ITEM_TAGS.get(kind, "<message>") if isinstance(kind, str) else "<message>"


ResponseItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")]
    | Annotated[CustomCallItem, Tag("<custom_tool_call>")]
    | Annotated[ItemReference, Tag("<item_reference>")]
    | Annotated[OtherItem, Tag("<other>")],
    Discriminator(_kind_of_item),
]


class ResponseTool(Function):
    """As chat's, but with the function's fields beside the type."""

    type: Literal["function"]

    def as_chat(self) -> Tool:
        function = Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)


def _kind_of_tool(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<other>" if isinstance(kind, str) and kind != "function" else "<function>"


AnyResponseTool = Annotated[
    Annotated[ResponseTool, Tag("<function>")] | Annotated[OtherTool, Tag("<other>")], Discriminator(_kind_of_tool)
]


class ResponseNamedTool(NamedFunction):
    type: Literal["function"]

    def as_chat(self) -> NamedTool:
        return NamedTool(type="function", function=NamedFunction(name=self.name))


class ResponseAllowedTools(Fields):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"] = "auto"
    tools: list[
        Annotated[
            Annotated[ResponseNamedTool, Tag("<function>")] | Annotated[OtherTool, Tag("<other>")],
            Discriminator(_kind_of_tool),
        ]
    ] = Field(max_length=MAX_TOOLS)

    def as_chat(self) -> AllowedTools:
        tools = [tool.as_chat() for tool in self.tools if isinstance(tool, ResponseNamedTool)]
        return AllowedTools(type="allowed_tools", allowed_tools=AllowedFunctions(mode=self.mode, tools=list(tools)))


def _kind_of_choice(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if isinstance(value, str):
        return "<text>"
    if kind == "allowed_tools":
        return "<allowed>"
    return _kind_of_tool(value) if isinstance(value, dict | Fields) else None


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")]
    | Annotated[ResponseNamedTool, Tag("<function>")]
    | Annotated[ResponseAllowedTools, Tag("<allowed>")]
    | Annotated[OtherTool, Tag("<other>")],
    union(_kind_of_choice, "must be a string or an object"),
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
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("the type json_schema needs schema")
        return self

    def as_chat(self) -> ResponseFormat:
        if self.type != "json_schema":
            return ResponseFormat(type=self.type)
        return ResponseFormat(type=self.type, json_schema=JsonSchema(schema=self.schema_, strict=self.strict))


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
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: TopLogprobs | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    text: ResponseText = ResponseText()
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    tools: list[AnyResponseTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ResponseToolChoice = "auto"
    parallel_tool_calls: bool = True
    seed: int | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    ignore_eos: bool = False
    min_tokens: Count = 0
    cache_salt: CacheSalt = ""

    @property
    def functions(self) -> list[ResponseTool]:
        """The tools that can be called; the server runs none itself."""
        return [tool for tool in self.tools if isinstance(tool, ResponseTool)]

    @property
    def references(self) -> list[str]:
        """Ids of items of stored responses that are part of the input."""
        return [item.id for item in self.input if isinstance(item, ItemReference)]

    @property
    def dropped(self) -> Iterator[str]:
        """What is left out, as warnings name it."""
        for index, tool in enumerate(self.tools):
            if isinstance(tool, OtherTool):
                yield f"tools[{index}]: {tool.type}"
        for index, item in enumerate(self.input if isinstance(self.input, list) else ()):
            if isinstance(item, OtherItem) and item.type != "reasoning":
                yield f"input[{index}]: {item.type}"

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in self.include


def _chat_content(content: str | list[ResponseTextPart | RefusalPart]) -> str | list[ContentPart]:
    if isinstance(content, str):
        return content
    return [TextPart(type="text", text=part.text) for part in content]
