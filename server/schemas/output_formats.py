"""Schemas of the fields that constrain the output: formats, tools, and the choice between them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field, Tag, model_validator

from ..constraints.grammar_spec import MAX_CHOICES, OBJECT_SCHEMA
from ..text.chat_format import FunctionCall, FunctionTool, ToolOptions
from .body import TEXT_OR_OBJECT, Body, Fields, Text, union
from .field_rules import CALL_RULES, LEFT_OUT, TOOL_RULES, FieldRules

MAX_TOOLS: Final = 128
"""Maximum number of tools, as in OpenAI's API."""

Choices = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)]

Schema = Annotated[
    Text | Annotated[dict[str, Any], Tag("<object>")],
    TEXT_OR_OBJECT,
]

FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
"""Name of a function in chat completions."""

LongFunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,128}$")]
"""Name of a function in responses and messages, whose APIs allow longer ones."""


class JsonSchema(Fields):
    """With `strict`, a keyword that cannot be enforced is an error; without, it is dropped and reported."""

    name: str | None = None
    """Name of the schema, without effect."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """JSON schema of the output. Any object by default."""

    description: str | None = None
    """Description of the schema, without effect: put it into a message."""

    strict: bool = False
    """Whether a keyword that cannot be enforced is a 400. Otherwise it is dropped and reported. A bound that cannot be
    compiled is widened and reported in both cases."""


class ResponseFormat(Fields):
    """OpenAI's constraint to JSON. `schema` next to the type is llama.cpp's form, and `value` Hugging Face's."""

    type: Literal["text", "json_object", "json_schema"]
    """Kind of constraint. `json_object` is any JSON object, unless there is a schema."""

    json_schema: JsonSchema | None = None
    """Schema for the type `json_schema`, in OpenAI's envelope."""

    schema_: Schema | None = Field(default=None, alias="schema")
    """Schema without an envelope, as llama.cpp takes it."""

    value: Schema | None = None
    """Schema without an envelope, as Hugging Face's clients send it."""

    @model_validator(mode="after")
    def _takes_its_schema(self) -> "ResponseFormat":
        has_schema = any(schema is not None for schema in (self.json_schema, self.schema_, self.value))
        if self.type == "text" and has_schema:
            raise ValueError("the type text takes no schema: use the type json_schema")
        if self.type == "json_schema" and not has_schema:
            raise ValueError("the type json_schema needs the field json_schema")
        return self

    @property
    def output_schema(self) -> str | Mapping[str, Any] | None:
        """Schema of the output; None for text."""
        if self.type == "text":
            return None
        named = None if self.json_schema is None else self.json_schema.schema_
        return next((each for each in (named, self.schema_, self.value) if each is not None), OBJECT_SCHEMA)

    @property
    def is_strict(self) -> bool:
        """Whether a keyword of the schema that cannot be enforced is an error."""
        return self.json_schema is not None and self.json_schema.strict


class StructuredOutputs(Fields):
    """vLLM's constraints, of which a request has exactly one. White space is always fixed here."""

    model_config = ConfigDict(extra="forbid")

    json_: Schema | None = Field(default=None, alias="json")
    """JSON schema, as an object or as text."""

    json_object: bool = False
    """Whether the output is any JSON object."""

    regex: str | None = None
    """Regular expression that the whole output matches."""

    choice: Choices | None = None
    """Strings of which the output is one."""

    grammar: str | None = None
    """Grammar in Lark's notation or in GBNF."""

    disable_any_whitespace: bool = True
    """Accepted without effect: whitespace in JSON is always fixed."""

    @model_validator(mode="after")
    def _has_one(self) -> "StructuredOutputs":
        if len(self.model_fields_set - {"disable_any_whitespace"}) != 1:
            raise ValueError("must have one, and only one of json, json_object, regex, choice and grammar")
        return self


class StructuredFields(Body):
    """Constraints on the output, of which a request has at most one.

    `json_schema` and `grammar` are llama.cpp's, `regex` and `ebnf` are SGLang's; empty texts of these four constrain
    nothing.
    """

    response_format: ResponseFormat | None = None
    """OpenAI's constraint of the output to JSON; text by default."""

    structured_outputs: StructuredOutputs | None = None
    """vLLM's constraint of the output: one of JSON, a regular expression, a choice or a grammar."""

    json_schema: Schema | None = None
    """JSON schema of the output, as an object or as text; llama.cpp's name."""

    grammar: str | None = None
    """Grammar of the output in Lark's notation or in GBNF; llama.cpp's name. An empty text constrains nothing."""

    regex: str | None = None
    """Regular expression that the whole output matches; SGLang's name. An empty text constrains nothing."""

    ebnf: str | None = None
    """Grammar of the output in Lark's notation or in GBNF; SGLang's name. An empty text constrains nothing."""


def _kind_of_choice(value: Any) -> str | None:
    match value:
        case str():
            return "<text>"
        case {"type": "allowed_tools"} | AllowedTools():
            return "<allowed>"
        case dict() | NamedTool():
            return "<object>"
        case _:
            return None


class Function(Fields):
    """With `strict`, a keyword of `parameters` that cannot be enforced is an error; otherwise it is dropped and
    reported.
    """

    field_rules: ClassVar[FieldRules] = TOOL_RULES

    name: FunctionName
    """Name of the function."""

    description: str | None = None
    """Purpose of the function, which the model reads."""

    parameters: dict[str, Any] = Field(default_factory=dict)
    """JSON schema of the arguments, an object."""

    strict: bool = False
    """Whether a keyword of `parameters` that cannot be enforced is a 400. Otherwise it is dropped and reported. A bound
    that cannot be compiled is widened and reported in both cases."""

    def as_tool(self) -> FunctionTool:
        """Returns the tool."""
        return FunctionTool(self.name, self.description, self.parameters, self.strict)


class Tool(Fields):
    field_rules: ClassVar[FieldRules] = TOOL_RULES

    type: Literal["function"]
    """Kind of tool; only functions are supported."""

    function: Function
    """Function that the model may call."""


class CalledFunction(Fields):
    field_rules: ClassVar[FieldRules] = CALL_RULES

    name: FunctionName
    """Name of the function."""

    arguments: str
    """Arguments as JSON text."""


class ToolCall(Fields):
    """A call, in an assistant's message."""

    field_rules: ClassVar[FieldRules] = CALL_RULES

    id: str
    """Id of the call."""

    type: Literal["function"] = "function"
    """Kind of call."""

    function: CalledFunction
    """Function that was called."""

    def as_call(self) -> FunctionCall:
        """Returns the call without its envelope."""
        return FunctionCall(self.id, self.function.name, self.function.arguments)


class OtherTool(Fields):
    """A tool of a type that the server cannot run, such as a web search."""

    field_rules: ClassVar[FieldRules] = LEFT_OUT

    type: str
    """Type of the tool, which is left out and reported."""


class NamedFunction(Fields):
    name: FunctionName
    """Name of the function."""


class NamedTool(Fields):
    type: Literal["function"]
    """Kind of tool."""

    function: NamedFunction
    """The only function to call."""


class AllowedFunctions(Fields):
    """Tools that may be called. Entries of types that the server cannot run are ignored, as in `tools`."""

    mode: Literal["auto", "required"] = "auto"
    """Whether one of the tools may or must be called."""

    tools: list[NamedTool | OtherTool] = Field(max_length=MAX_TOOLS)
    """Tools that may be called. Each must be in the request's `tools`."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.tools if isinstance(tool, NamedTool))


class AllowedTools(Fields):
    """Restricts which tools may be called, while the prompt, and so its cached prefix, has all tools."""

    type: Literal["allowed_tools"]
    """Kind of choice."""

    allowed_tools: AllowedFunctions
    """Tools that may be called, and whether one must be."""


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")]
    | Annotated[NamedTool, Tag("<object>")]
    | Annotated[AllowedTools, Tag("<allowed>")],
    union(_kind_of_choice, "must be a string or an object"),
]


def tool_options(tools: Sequence[Tool], choice: ToolChoice, *, parallel: bool = True) -> ToolOptions:
    """Returns the tools and the tool choice of a chat.

    Args:
      parallel: Whether a response may hold several calls.
    """
    functions = [tool.function.as_tool() for tool in tools]
    if isinstance(choice, NamedTool):
        return ToolOptions(functions, "required", [choice.function.name], parallel=False)
    if isinstance(choice, AllowedTools):
        allowed = choice.allowed_tools
        return ToolOptions(functions, allowed.mode, sorted(allowed.names), parallel)
    return ToolOptions(functions, choice, parallel=parallel)
