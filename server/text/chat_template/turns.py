"""Messages, and how any order of them becomes turns that alternate."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
}


class ChatFormatError(ValueError):
    """These messages cannot become a prompt; the text is one line, fit to show to the caller."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


def normalized(messages: Sequence[Message]) -> list[Message]:
    """The messages with trimmed texts, and with the roles system, user and assistant only.

    Raises:
      ChatFormatError: A role is unknown, or there are no messages.
    """
    if not messages:
        raise ChatFormatError("there must be at least one message")
    return [Message(_role(message.role), message.content.strip()) for message in messages]


def unfolded(messages: Sequence[Message]) -> list[Message]:
    """The messages as they are, for formats that take any order of the three roles."""
    return list(messages)


def fold_after_system(messages: Sequence[Message]) -> list[Message]:
    """Turns that alternate behind one system message, for formats that take a system role only in front.

    The leading system texts are that message, if a user's message follows them. Elsewhere system texts are folded.
    """
    leading = list(itertools.takewhile(lambda message: message.role == "system", messages))
    rest = messages[len(leading) :]
    text = _joined(leading)
    if not text or not rest or rest[0].role != "user":
        return fold(messages)
    return [Message("system", text), *fold(rest)]


def fold(messages: Sequence[Message]) -> list[Message]:
    """Turns that begin with the user's and alternate, for formats without a system role.

    System texts count as the user's and stay where they are. Neighbouring texts of one side are joined by an empty
    line. If the assistant's turn comes first, an empty one of the user's is put in front. A turn depends on its own
    messages only, so a longer conversation has all closed turns of a shorter one as its prefix.
    """
    turns = [Message(side, _joined(group)) for side, group in itertools.groupby(messages, key=_side)]
    if turns and turns[0].role == "assistant":
        turns.insert(0, Message("user", ""))
    return turns


def _joined(messages: Iterable[Message]) -> str:
    return "\n\n".join(message.content for message in messages if message.content)


def _side(message: Message) -> str:
    return "assistant" if message.role == "assistant" else "user"


def _role(role: str) -> str:
    try:
        return _ROLES[role]
    except KeyError:
        raise ChatFormatError(
            f"the role {role!r:.100} is not supported; roles are system, developer, user, assistant and tool"
        ) from None
