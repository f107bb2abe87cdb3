"""Interface of the backends that respond to a chat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Message:
    """Message of a conversation. `role` is system, user or assistant."""

    role: str
    content: str


@runtime_checkable
class Backend(Protocol):
    """Responds to a conversation. Its coroutines run in one event loop."""

    async def start(self) -> str:
        """Prepares the backend.

        Returns:
          The model's name.

        Raises:
          CommandError: The server cannot be reached, or the model cannot be loaded.
        """

    async def respond(self, messages: Sequence[Message], show: Callable[[str], None]) -> bool:
        """Responds to the last message, and calls `show` with each piece of text. Cancelling it stops the response.

        Returns:
          Whether the token limit ended the response.

        Raises:
          CommandError: The response failed, or ended early.
        """

    async def close(self) -> None:
        """Releases the backend's resources."""

    def exit_if_loading(self, status: int) -> None:
        """Ends the process if `start` was interrupted while loading, which nothing else can interrupt."""
