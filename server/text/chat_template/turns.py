"""Chat messages, and their folding into alternating turns."""

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
    """Messages cannot be formatted as a prompt. The message is one line and safe to show to the client."""


@dataclass(frozen=True, slots=True)
class Message:
    """A chat message.

    Attributes:
      role: Role of the author.
      content: Text of the message.
    """

    role: str
    content: str


def normalized(messages: Sequence[Message]) -> list[Message]:
    """Returns messages with stripped texts and the roles system, user and assistant only.

    Raises:
      ChatFormatError: A role is unknown, or there are no messages.
    """
    if not messages:
        raise ChatFormatError("there must be at least one message")
    return [Message(_role(message.role), message.content.strip()) for message in messages]


def unfolded(messages: Sequence[Message]) -> list[Message]:
    """Returns messages unchanged, for formats that accept any order of the three roles."""
    return list(messages)


def fold_after_system(messages: Sequence[Message]) -> list[Message]:
    """Returns one system message and alternating turns, for formats that accept a system role only at the start.

    Leading system messages are joined if a user's message follows them; all others are folded into user turns.
    """
    leading = list(itertools.takewhile(lambda message: message.role == "system", messages))
    rest = messages[len(leading) :]
    text = _joined(leading)
    if not text or not rest or rest[0].role != "user":
        return fold(messages)
    return [Message("system", text), *fold(rest)]


def fold(messages: Sequence[Message]) -> list[Message]:
    """Returns alternating turns that start with the user's, for formats without a system role.

    System messages count as the user's and keep their position. Adjacent messages of one side are joined by an empty
    line. An empty user turn precedes a leading assistant's turn. A turn depends only on its own messages, so that the
    prompt of a longer conversation starts with all closed turns of a shorter one.
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
