"""Schemas of `/v1/responses`. Fields that no schema names are checked by `body_check`."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ...schemas.base import TEXT_OR_LIST, CacheSalt, Fields, Several, Text, TopLogprobs, union
from ...schemas.field_rules import FieldRules
from ...schemas.sampling_fields import SamplingFields, with_numbers
from ...schemas.tools import MAX_TOOLS, Function, NamedFunction, OtherTool
from ...text.conversation import ToolOptions
from .field_rules import RESPONSES_RULES, TEXT_OPTIONS_RULES
from .input_items import ItemReference, OtherItem, ResponseItem

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
"""Parts of a response that may be included; no response here has any but the first."""


class ResponseTool(Function):
    """A function tool, with the function's fields beside the type."""

    type: Literal["function"]
    """Kind of tool."""


def _kind_of_tool(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<other>" if isinstance(kind, str) and kind != "function" else "<function>"


AnyResponseTool = Annotated[
    Annotated[ResponseTool, Tag("<function>")] | Annotated[OtherTool, Tag("<other>")], Discriminator(_kind_of_tool)
]


class ResponseNamedTool(NamedFunction):
    """The only function to call."""

    type: Literal["function"]
    """Kind of tool."""


class ResponseAllowedTools(Fields):
    """The only tools that may be called."""

    type: Literal["allowed_tools"]
    """Kind of choice."""

    mode: Literal["auto", "required"] = "auto"
    """Whether one of the tools may or must be called."""

    tools: list[
        Annotated[
            Annotated[ResponseNamedTool, Tag("<function>")] | Annotated[OtherTool, Tag("<other>")],
            Discriminator(_kind_of_tool),
        ]
    ] = Field(max_length=MAX_TOOLS)
    """Tools that may be called. Each must be in the request's `tools`."""

    @property
    def names(self) -> list[str]:
        """Names of the functions among them."""
        return sorted({tool.name for tool in self.tools if isinstance(tool, ResponseNamedTool)})


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
    """Format of the text, with the schema's fields beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    """Kind of text; `json_object` is any JSON object."""

    name: str | None = None
    """Name of the schema, without effect."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON schema of the text, for the type `json_schema`."""

    description: str | None = None
    """Description of the schema, without effect."""

    strict: bool = False
    """Whether a keyword that cannot be enforced is a 400. Otherwise it is dropped and reported."""

    @model_validator(mode="after")
    def _is_whole(self) -> "TextFormat":
        if self.type == "json_schema" and self.schema_ is None:
            raise ValueError("the type json_schema needs schema")
        if self.type != "json_schema" and self.schema_ is not None:
            raise ValueError(f"the type {self.type} takes no schema: use the type json_schema")
        return self


class ResponseText(Fields):
    """Options of the text. `verbosity` is ignored."""

    field_rules: ClassVar[FieldRules] = TEXT_OPTIONS_RULES

    format: TextFormat = TextFormat(type="text")
    """Format of the text."""


class ResponseStreamOptions(Fields):
    """Options of a stream. They are accepted, and nothing is obfuscated."""

    include_obfuscation: bool = False
    """Accepted without effect: nothing is obfuscated."""


@with_numbers("temperature", "top_p", "top_k", "min_p")
class ResponseBody(SamplingFields):
    """Body of `POST /v1/responses`. Sampling fields but `temperature` and `top_p` are extensions, as in chat."""

    field_rules: ClassVar[FieldRules] = RESPONSES_RULES

    input: Annotated[
        Text | Annotated[Several[ResponseItem], Field(min_length=1), Tag("<list>")],
        TEXT_OR_LIST,
    ]
    """Text of the user, or items of the conversation, oldest first."""

    instructions: str | None = None
    """System text in front of the conversation. Later responses don't inherit it."""

    previous_response_id: str | None = None
    """Id of a stored response that this one continues."""

    store: bool = True
    """Whether the response is kept, to be fetched and continued."""

    background: bool = False
    """Whether the request returns at once, and the response is fetched by its id later. It needs `store`."""

    stream: bool = False
    """Whether the response is a stream of server-sent events."""

    stream_options: ResponseStreamOptions | None = None
    """Options of the stream."""

    include: Several[Includable] = Field(default_factory=list)
    """Further parts of the response: `message.output_text.logprobs`. Other values have no effect."""

    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Maximum number of tokens to generate. The default is the checkpoint's, or no limit."""

    top_logprobs: TopLogprobs | None = None
    """Number of alternatives to report for each token. It needs `message.output_text.logprobs` in `include`."""

    truncation: Literal["auto", "disabled"] = "disabled"
    """Returned as it is, without effect: the state has no length that a conversation could exceed."""

    text: ResponseText = ResponseText()
    """Options of the text, such as a JSON schema."""

    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Names and values that are stored with the response and returned."""

    user: str | None = None
    """Returned as it is, without effect."""

    safety_identifier: str | None = None
    """Returned as it is, without effect."""

    prompt_cache_key: str | None = None
    """Returned as it is, without effect: every prefix is cached."""

    tools: list[AnyResponseTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    """Functions that the model may call. Tools of other types are left out and reported."""

    tool_choice: ResponseToolChoice = "auto"
    """Whether the model may or must call a function, or which one."""

    parallel_tool_calls: bool = True
    """Whether a response may hold several calls."""

    cache_salt: CacheSalt = ""
    """Name of a separate prefix cache: requests reuse states only of requests with the same salt."""

    @property
    def functions(self) -> list[ResponseTool]:
        """The tools that the model may call; the server runs none itself."""
        return [tool for tool in self.tools if isinstance(tool, ResponseTool)]

    @property
    def tool_options(self) -> ToolOptions:
        """The tools and the tool choice, which must not be a tool of another type."""
        tools = [tool.as_tool() for tool in self.functions]
        choice, parallel = self.tool_choice, self.parallel_tool_calls
        match choice:
            case ResponseNamedTool():
                return ToolOptions(tools, "required", [choice.name], parallel=False)
            case ResponseAllowedTools():
                return ToolOptions(tools, choice.mode, choice.names, parallel)
            case OtherTool():
                raise ValueError(f"{choice.type} is no function")
        return ToolOptions(tools, choice, parallel=parallel)

    @property
    def references(self) -> list[str]:
        """Ids of the items of stored responses that are part of the input."""
        return [item.id for item in self.input if isinstance(item, ItemReference)]

    @property
    def dropped(self) -> Iterator[str]:
        """Names of what is left out, for warnings."""
        for index, tool in enumerate(self.tools):
            if isinstance(tool, OtherTool):
                yield f"tools[{index}]: {tool.type}"
        for index, item in enumerate(self.input if isinstance(self.input, list) else ()):
            if isinstance(item, OtherItem) and item.type != "reasoning":
                yield f"input[{index}]: {item.type}"

    @property
    def wants_logprobs(self) -> bool:
        """Whether the response includes log-probabilities."""
        return LOGPROBS in self.include
