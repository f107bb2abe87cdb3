"""Layouts of prompts: what a layout returns, how a prompt ends, and Gemma's own turn format."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from ..tokenizer import END_OF_TURN, START_OF_TURN
from .turns import ChatFormatError, Message, fold


@dataclass(frozen=True, slots=True)
class Ending:
    """How a prompt ends, and the variables of a template.

    Attributes:
      add_header: Whether the header of the assistant's answer ends the prompt, also behind an assistant's message.
      stay_open: Whether the prompt ends within the last message, the assistant's, so that the answer continues it.
        Excludes a header.
      variables: Variables for a checkpoint's template; Gemma's own format has none.
    """

    add_header: bool = True
    stay_open: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    def with_variable(self, name: str, value: Any) -> "Ending":
        return replace(self, variables={**self.variables, name: value})


ANSWER: Final = Ending()


class Part(NamedTuple):
    """A stretch of a prompt. Only in `markup` are control tokens recognised: no message can bring any in."""

    text: str
    markup: bool = True


type Layout = Callable[[Sequence[Message], Ending], list[Part]]
"""Lays out messages (roles system, user, assistant; in any order) as a prompt."""

type Writer = Callable[[Sequence[Message], bool], list[Part]]
"""Writes messages, each of them closed; the flag asks for the header of an answer behind them."""


def lay_out(messages: Sequence[Message], ending: Ending, write: Writer) -> list[Part]:
    """The messages as `write` writes them, up to the ending.

    Raises:
      ChatFormatError: `write` cannot write them, or adds more to the last one than what closes it.
    """
    if not ending.stay_open:
        return write(messages, ending.add_header)
    if not messages[-1].content:
        return write(messages[:-1], True)
    return _open_end(write(messages, False), messages[-1].content)


def gemma_turns(messages: Sequence[Message], ending: Ending) -> list[Part]:
    """Gemma's format, which has no system role and wants turns that alternate: `fold` makes them."""
    return lay_out(fold(messages), ending, _write_turns)


def _write_turns(turns: Sequence[Message], add_header: bool) -> list[Part]:
    """Each part is encoded on its own, so that no piece reaches across a mark or a header's end."""
    parts: list[Part] = []
    for turn in turns:
        role = "model" if turn.role == "assistant" else "user"
        content = Part(turn.content, markup=False)
        parts += (Part(START_OF_TURN), Part(role), Part("\n"), content, Part(END_OF_TURN), Part("\n"))
    if add_header:
        parts += (Part(START_OF_TURN), Part("model"), Part("\n"))
    return parts


def _open_end(parts: list[Part], text: str) -> list[Part]:
    """The parts up to the last message's text, without the markup that closes it."""
    last = max(position for position, part in enumerate(parts) if not part.markup)
    if parts[last].text != text:
        raise ChatFormatError("the checkpoint's chat template does not end with the last message")
    return parts[: last + 1]
