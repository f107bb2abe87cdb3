"""What clients may send of tools: functions that the model may ask for, and calls of them in a conversation."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, Tag

from .schema_base import TEXT_OR_OBJECT, Fields

MAX_TOOLS: Final = 128
"""OpenAI's."""

FunctionName = Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]


class Function(Fields):
    """`strict` changes nothing: arguments always keep to `parameters`, a JSON schema."""

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


class NamedFunction(Fields):
    name: FunctionName


class NamedTool(Fields):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<text>")] | Annotated[NamedTool, Tag("<object>")],
    TEXT_OR_OBJECT,
]
