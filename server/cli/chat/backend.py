"""Where a chat's answers come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation; `role` is system, user or assistant."""

    role: str
    content: str


@runtime_checkable
class Backend(Protocol):
    """Answers a conversation. Its methods are coroutines of one event loop."""

    async def start(self) -> str:
        """Gets ready; returns the model's name.

        Raises:
          CommandError: it cannot.
        """

    async def answer(self, messages: Sequence[Message], show: Callable[[str], None]) -> bool:
        """Answers the last message, calling `show` with each piece of text; cancelling it stops the answer.

        Returns:
          Whether the answer was cut off by the limit of tokens.

        Raises:
          CommandError: there is no answer, or none to its end.
        """

    async def close(self) -> None:
        """Gives back what it holds."""

    def leave_if_loading(self, status: int) -> None:
        """Ends the process if `start` was interrupted where nothing else can end it."""
