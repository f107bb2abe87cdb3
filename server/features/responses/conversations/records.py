"""Conversations and their items, as frozen values."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ....database.group_commit import WriteLoad
from ....schemas.body import MAX_MESSAGES

MAX_ITEMS: Final = MAX_MESSAGES
MAX_ITEM_BYTES: Final = 16 * 2**20
"""Maximums of the number of items of a conversation and of their bytes, beyond which nothing is added to it."""


class Outcome(Enum):
    """Outcome of a change of a conversation.

    Attributes:
      DONE: The conversation was changed.
      MISSING: The conversation does not exist.
      LOCKED: A running response is going to add to the conversation.
      FULL: The conversation has reached its limit of items or bytes.
    """

    DONE = "done"
    MISSING = "missing"
    LOCKED = "locked"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a conversation.

    Attributes:
      text: JSON of the item, its id included.
    """

    id: str
    text: bytes


@dataclass(frozen=True, slots=True)
class ConversationRecord:
    """A conversation without its items.

    Attributes:
      created: Time of its creation, in seconds since 1970.
      metadata: JSON of the client's metadata.
    """

    tenant: str
    id: str
    created: int
    metadata: bytes


@dataclass(frozen=True, slots=True)
class Turn:
    """Turn of one response in a conversation, which no other response may change during the turn.

    Attributes:
      conversation: Id of the conversation.
      response: Id of the response.
      items: Items that the turn adds: while the response runs, its input; none if it has failed.
    """

    conversation: str
    response: str
    items: Sequence[Item] = ()

    def ended(self, output: Sequence[Item]) -> "Turn":
        """Returns the turn at the end of its response.

        Args:
          output: Items of the response's output; none if it has failed.
        """
        return Turn(self.conversation, self.response, [*self.items, *output] if output else ())


def load_of(items: Sequence[Item]) -> WriteLoad:
    """Returns the load of a write that adds items to a conversation."""
    return WriteLoad(1 + len(items), sum(len(item.text) for item in items))


def pack_items(items: Sequence[Item]) -> bytes:
    """Returns items in the encoding in which a running response stores them, one per line."""
    return b"\n".join(item.id.encode() + b" " + item.text for item in items)


def unpack_items(packed: bytes) -> list[Item]:
    """Returns the items of `pack_items`."""
    parts = (line.partition(b" ") for line in packed.splitlines())
    return [Item(name.decode(), text) for name, _, text in parts]


def has_room(num_items: int, num_bytes: int) -> bool:
    """Returns whether items may be added to a conversation of this size."""
    return num_items < MAX_ITEMS and num_bytes < MAX_ITEM_BYTES
