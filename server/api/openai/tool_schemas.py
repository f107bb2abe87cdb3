"""What clients may send of tools: functions that the model may ask for, and calls of them in a conversation."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, Tag

from ..common.schema_base import Fields, union

MAX_TOOLS: Final = 128
"""OpenAI's."""

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
    """With `strict`, a keyword of `parameters` that cannot be enforced is an error, else it is dropped and reported."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool = False


class Tool(Fields):
    type: Literal["function"]
    function: Function


class CalledFunction(Fields):
    name: FunctionName
    arguments: str


class ToolCall(Fields):
    """In a message of the assistant's."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class OtherTool(Fields):
    """A tool of a type that the server cannot run, such as a web search."""

    type: str


class NamedFunction(Fields):
    name: FunctionName


class NamedTool(Fields):
    type: Literal["function"]
    function: NamedFunction


class AllowedFunctions(Fields):
    """Some of the tools; those of types that the server cannot run don't matter, as they are none of `tools` either."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool | OtherTool] = Field(max_length=MAX_TOOLS)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.function.name for tool in self.tools if isinstance(tool, NamedTool))


class AllowedTools(Fields):
    """Lets only some of the tools be called, while the prompt, and so its cached prefix, has all of them."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")]
    | Annotated[NamedTool, Tag("<object>")]
    | Annotated[AllowedTools, Tag("<allowed>")],
    union(_kind_of_choice, "must be a string or an object"),
]
