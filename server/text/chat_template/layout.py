"""Layouts of prompts: their parts, their ending, and Gemma's turn format."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from ..tokenizer import END_OF_TURN, START_OF_TURN
from .turns import ChatFormatError, Message, fold


@dataclass(frozen=True, slots=True)
class Ending:
    """How a prompt ends, and the variables of a template.

    Attributes:
      add_header: Whether the header of an assistant's turn ends the prompt, even after an assistant's message.
      stay_open: Whether the last message, the assistant's, stays open, so that the model continues it. Excludes a
        header.
      variables: Variables for a checkpoint's template; Gemma's own format has none.
    """

    add_header: bool = True
    stay_open: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    def with_variable(self, name: str, value: Any) -> "Ending":
        """Returns a copy with one more variable."""
        return replace(self, variables={**self.variables, name: value})


NEW_TURN: Final = Ending()
"""Ending by the header of a new assistant's turn."""


class Part(NamedTuple):
    """A part of a prompt.

    Attributes:
      text: Text of the part.
      markup: Whether names of control tokens become those tokens; never in a message's text.
    """

    text: str
    markup: bool = True


type Layout = Callable[[Sequence[Message], Ending], list[Part]]
"""Lays out messages (roles system, user, assistant; in any order) as a prompt."""

type Writer = Callable[[Sequence[Message], bool], list[Part]]
"""Writes messages, each of them closed; the flag adds the header of an assistant's turn."""


def lay_out(messages: Sequence[Message], ending: Ending, write: Writer) -> list[Part]:
    """Returns the prompt that `write` writes, up to the ending.

    Raises:
      ChatFormatError: `write` cannot write the messages, or changes the text of the last one.
    """
    if not ending.stay_open:
        return write(messages, ending.add_header)
    if not messages[-1].content:
        return write(messages[:-1], True)
    return _open_end(write(messages, False), messages[-1].content)


def gemma_turns(messages: Sequence[Message], ending: Ending) -> list[Part]:
    """Returns a prompt in Gemma's format, which has no system role and whose turns alternate."""
    return lay_out(fold(messages), ending, _write_turns)


def _write_turns(turns: Sequence[Message], add_header: bool) -> list[Part]:
    """Writes turns. Parts are encoded separately, so that no piece crosses a mark or the end of a header."""
    parts: list[Part] = []
    for turn in turns:
        role = "model" if turn.role == "assistant" else "user"
        content = Part(turn.content, markup=False)
        parts += (Part(START_OF_TURN), Part(role), Part("\n"), content, Part(END_OF_TURN), Part("\n"))
    if add_header:
        parts += (Part(START_OF_TURN), Part("model"), Part("\n"))
    return parts


def _open_end(parts: list[Part], text: str) -> list[Part]:
    """Returns the parts up to the last message's text, without the markup that closes it."""
    last = max(position for position, part in enumerate(parts) if not part.markup)
    if parts[last].text != text:
        raise ChatFormatError("the checkpoint's chat template does not end with the last message")
    return parts[: last + 1]
