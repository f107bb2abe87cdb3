"""Schemas of tools: functions that the model may call, and their calls in a conversation."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, Tag

from ..text.conversation import FunctionCall, FunctionTool, ToolOptions
from .body import Fields, union
from .field_rules import CALL_RULES, LEFT_OUT, TOOL_RULES, FieldRules

MAX_TOOLS: Final = 128
"""Maximum number of tools, as in OpenAI's API."""

FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


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
    """Whether a keyword of `parameters` that cannot be enforced is a 400. Otherwise it is dropped and reported."""

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
