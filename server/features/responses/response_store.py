"""Stored responses, which clients may fetch or continue. Each tenant sees only its own."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from pydantic import TypeAdapter

from ...errors import kinds
from ...errors.request_errors import ApiError
from ...generation.admission import admission
from ...generation.delta import Delta
from ...tenancy.tenant_locks import TenantLocks
from ...text.conversation import ConversationMessage
from .conversations.records import Item, Turn
from .conversations.store import ConversationStore
from .records import Job

MAX_HISTORY: Final = 32 * 2**20
"""Maximum bytes of a stored response's history, half of what one transaction stores."""

STATE_ROLE: Final = "state"
"""Role of a history's first message if its content is the id of a saved state, which the other messages continue."""

_MESSAGES: Final = TypeAdapter(list[ConversationMessage])


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as JSON, which takes up to thirty times less memory than parsed objects.

    Attributes:
      response: Response as the client received it.
      history: All messages before the response's own, packed, without instructions. The first has `STATE_ROLE` if the
        others continue a saved state.
      output: List with the response's message, packed; empty while it is being generated.
      is_background: Whether the response was generated in the background, and may be cancelled.
      is_streamed: Whether its events may be followed again.
      turn: Turn in its conversation while it runs; None if it has none.
    """

    id: str
    response: bytes
    history: bytes
    output: bytes
    is_background: bool = False
    is_streamed: bool = False
    turn: Turn | None = None


type PartKind = Literal["history", "output", "conversation", "item"]
"""The history or the output of a response, all items of a conversation, or an item of any conversation."""


class StoredPart(NamedTuple):
    """Key of something in the store that bodies name.

    Attributes:
      id: Id of the response, the conversation or the item.
    """

    kind: PartKind
    id: str


class ResponseLog(ABC):
    """Log of a background response that this replica generates.

    Attributes:
      is_streamed: Whether clients may follow its events.
    """

    is_streamed: bool

    @abstractmethod
    def hold(self, task: asyncio.Task[Any]) -> None:
        """Keeps other replicas from adopting the response until a task has ended for any reason. Only this does so."""

    @abstractmethod
    async def append(self, events: Sequence[bytes], delta: Delta | None = None) -> None:
        """Appends events, and the delta from which they were built. After this returns, the events may be sent.

        Raises:
          FencedError: The response was adopted, ended or deleted by another replica.
          StoreUnavailableError: The store was unavailable for too long.
        """

    @abstractmethod
    async def end(
        self,
        events: Sequence[bytes],
        response: bytes,
        output: ConversationMessage,
        status: str,
        items: Sequence[Item] = (),
    ) -> None:
        """Appends the last events, stores the final response and its message, and adds to its conversation.

        Args:
          status: Status of the response.
          items: Items that its output adds to its conversation; none if it has failed or has no conversation.

        Raises:
          FencedError, StoreUnavailableError: See `append`.
        """

    @abstractmethod
    async def is_continued(self) -> bool:
        """Returns whether another replica continues the response or has ended it, other than by a cancellation."""

    @abstractmethod
    async def release(self, *, is_death: bool = False) -> bool:
        """Leaves the response to other replicas. Returns whether there may be other replicas.

        Args:
          is_death: Whether the response may have ended this replica's work on it, which then counts as a death.
        """


class ResponseStore(ABC):
    """Keeps responses, in memory or in a database.

    Attributes:
      conversations: Conversations, which are kept in the same place.
      locks: Locks under which a tenant's long expansions are made, one at a time.
    """

    def __init__(self, conversations: ConversationStore) -> None:
        self.conversations = conversations
        self.locks = TenantLocks()

    @abstractmethod
    async def check(self) -> None:
        """Checks that responses can be stored, before one is generated.

        Raises:
          StoreUnavailableError: The database fails.
        """

    @abstractmethod
    async def keep(
        self, response_id: str, response: bytes, history: bytes, output: ConversationMessage, turn: Turn | None = None
    ) -> bytes:
        """Stores a response that has ended, and adds to its conversation.

        Args:
          response: JSON of the response.
          history: Messages before the response's own, from `pack`.
          output: The response's own message.
          turn: Its ended turn in a conversation; None if it has none.

        Returns:
          JSON of the response that is stored under the id: an earlier one if a line of a batch has run before.

        Raises:
          ApiError: Another response has taken the turn.
        """

    @abstractmethod
    async def open(self, pending: StoredResponse, job: Job, events: Sequence[bytes]) -> ResponseLog:
        """Stores a background response before its first token.

        Args:
          pending: The response without output.
          job: All that another replica needs to generate it.
          events: First events, which are stored in the same transaction as the response.

        Raises:
          StoreUnavailableError: The store is unavailable or full.
        """

    @abstractmethod
    async def find(self, response_id: str) -> StoredResponse | None:
        """Returns a response of the current tenant; None if it does not exist."""

    @abstractmethod
    async def sizes(self, parts: Collection[StoredPart]) -> Mapping[StoredPart, tuple[int, int]]:
        """Returns the numbers of items and of bytes of those parts of the current tenant that exist.

        The number of items is known of conversations only, and 0 for other parts.
        """

    @abstractmethod
    async def contents(self, parts: Collection[StoredPart]) -> Mapping[StoredPart, Sequence[bytes]]:
        """Returns the contents of those parts that exist: packed messages, or the JSON of each item."""

    @abstractmethod
    async def seize(self, response_id: str) -> tuple[ResponseLog, int] | None:
        """Takes a running response from another replica, in order to end it within the current task.

        Returns:
          The response's log and the number of its next event, or None if no other replica can run it.
        """

    @abstractmethod
    async def remove(self, response_id: str) -> None:
        """Deletes a response, if it exists."""

    @abstractmethod
    async def follow(self, stored: StoredResponse, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Returns the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          ApiError: The event is no longer kept, or the event before it does not exist yet.
        """

    async def get(self, response_id: str) -> StoredResponse:
        """Returns a stored response.

        Raises:
          ApiError: 404, the response was never stored, is not finished yet, or was evicted.
        """
        stored = await self.find(response_id)
        if stored is None:
            raise no_response(response_id)
        return stored

    async def delete(self, response_id: str) -> None:
        """Deletes a response.

        Raises:
          ApiError: No response has this id.
        """
        await self.get(response_id)
        await self.remove(response_id)


def no_response(response_id: str) -> ApiError:
    """Returns a 404 for a response."""
    return ApiError(kinds.NO_SUCH_OBJECT, f"there is no stored response with the id {response_id[:100]!r}")


def pack(messages: Sequence[ConversationMessage]) -> bytes:
    """Returns messages in the encoding in which they are stored."""
    return _MESSAGES.dump_json(list(messages), exclude_defaults=True)


def unpack(packed: bytes) -> list[ConversationMessage]:
    """Returns the messages of `pack`."""
    return _MESSAGES.validate_python(admission.get().parse_stored(packed))


def num_messages(packed: bytes) -> int:
    """Returns the number of messages of `pack`, without unpacking them. Quotation marks in texts are escaped."""
    return packed.count(b'"role":')
