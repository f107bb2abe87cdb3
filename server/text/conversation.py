"""Conversations with their tools and tool choice, in a form that is common to all APIs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .chat_template import NEW_TURN, Ending


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call of a function in an assistant's message.

    Attributes:
      arguments: JSON text.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ConversationMessage:
    """A message of a conversation.

    Attributes:
      role: Role that the chat format knows, or `tool` for the result of a call.
      content: Text, or the texts of the message's parts; None without text.
      calls: Function calls, in an assistant's message.
      call_id: Id of the call whose result this message is.
    """

    role: str
    content: str | tuple[str, ...] | None = None
    calls: tuple[FunctionCall, ...] = ()
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function that the model may call.

    Attributes:
      parameters: JSON schema of the arguments; empty without arguments.
      strict: Whether a keyword of the schema that cannot be enforced is an error. Otherwise it is dropped and reported.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolOptions:
    """Tools of a request, and how the model may use them.

    Attributes:
      tools: All tools.
      mode: Whether the model must not, may or must call a tool.
      names: Names of the only tools that may be called; None allows all of them. The prompt introduces all tools in any
        case, so that its cached prefix stays the same.
      parallel: Whether a response may hold several calls.
    """

    tools: Sequence[FunctionTool] = ()
    mode: Literal["none", "auto", "required"] = "auto"
    names: Sequence[str] | None = None
    parallel: bool = True

    @property
    def introduced(self) -> Sequence[FunctionTool]:
        """Tools that the prompt introduces."""
        return () if self.mode == "none" else self.tools


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation to encode as a prompt.

    Attributes:
      messages: Messages, oldest first.
      ending: How the prompt ends.
      tools: Tools and tool choice; None if the request has neither.
    """

    messages: Sequence[ConversationMessage]
    ending: Ending = NEW_TURN
    tools: ToolOptions | None = None
