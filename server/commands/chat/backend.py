"""Interface of the backends that respond to a chat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """Message of a conversation. `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(slots=True)
class Reply:
    """A response that a backend writes.

    Attributes:
      show: Called with each piece of text.
      id: Id under which the backend saves its state; None until the response starts.
      is_truncated: Whether the token limit ended it.
    """

    show: Callable[[str], None] = field(repr=False)
    id: str | None = None
    is_truncated: bool = False


@dataclass(frozen=True, slots=True)
class LoadedState:
    """A saved state that conversations continue.

    Attributes:
      id: Id of the state, known to the backend that loaded it.
      num_tokens: Number of tokens of its history.
      messages: Messages of its chat; empty if its tokens are not a chat in the model's format.
    """

    id: str
    num_tokens: int
    messages: Sequence[ChatTurn] = ()


@runtime_checkable
class ChatBackend(Protocol):
    """Responds to a conversation. Its coroutines run in one event loop.

    All of them raise `CommandError`: the server cannot be reached or refuses, the model cannot be loaded, or a file
    holds no state of it.
    """

    async def start(self) -> str:
        """Prepares the backend.

        Returns:
          The model's name.
        """

    async def respond(self, messages: Sequence[ChatTurn], reply: Reply, state_id: str | None = None) -> None:
        """Responds to the last message. Cancelling it stops the response.

        Args:
          messages: The conversation, or the messages after the state.
          reply: Receives the response.
          state_id: Id of a loaded state that the messages continue.
        """

    async def save(self, reply: Reply) -> bytes:
        """Returns the state after a response, as a file."""

    async def load(self, data: bytes) -> LoadedState:
        """Loads the state in a file."""

    async def close(self) -> None:
        """Releases the backend's resources."""

    def exit_if_loading(self, status: int) -> None:
        """Exits the process if `start` was interrupted while loading, since loading cannot be interrupted otherwise."""
