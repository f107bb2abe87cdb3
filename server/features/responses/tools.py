"""Schemas of tools and tool choices of `/v1/responses`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from ...schemas.body import Fields, union
from ...schemas.tools import MAX_TOOLS, Function, NamedFunction, OtherTool


class ResponseTool(Function):
    """A function tool. The fields of the function are next to the type."""

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
        """Names of the functions among the tools."""
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
