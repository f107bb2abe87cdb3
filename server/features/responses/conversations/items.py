"""Converts messages and outputs of responses to items of conversations, and items to messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from pydantic import TypeAdapter

from ....generation.admission import admission
from ....http.response_parts import to_json
from ....text.conversation import ConversationMessage
from ..conversion import messages_of
from ..input_items import ResponseItem, items_of_message
from .records import Item

_ITEMS: Final = TypeAdapter(list[ResponseItem])

_ADDED: Final = ("completed", "incomplete")
"""Statuses of responses whose output is added to their conversation."""


@dataclass(frozen=True, slots=True)
class StoredItems:
    """Items of a conversation that a response continues.

    Attributes:
      texts: JSON of each item.
    """

    texts: Sequence[bytes]

    @property
    def num_bytes(self) -> int:
        """Bytes of all items."""
        return sum(map(len, self.texts))

    def conversation(self) -> list[ConversationMessage]:
        """Returns the messages that a response continues."""
        return stored_messages(admission.get().parse_stored(b"[" + b",".join(self.texts) + b"]"))


def stored_messages(items: Sequence[Mapping[str, Any]]) -> list[ConversationMessage]:
    """Returns the messages of stored items, one for each."""
    return messages_of(_ITEMS.validate_python(items), {})


def new_items(messages: Sequence[ConversationMessage]) -> list[Item]:
    """Returns the items of messages, with new ids."""
    items = (item for message in messages for item in items_of_message(message))
    return [_item({**item, "id": f"{item['id']}_{uuid4().hex}"}) for item in items]


def output_items(response: Mapping[str, Any]) -> list[Item]:
    """Returns the items that an ended response adds to its conversation; none if it failed or has no conversation."""
    if "conversation" not in response or response["status"] not in _ADDED:
        return []
    return [_item(item) for item in response["output"]]


def _item(fields: Mapping[str, Any]) -> Item:
    return Item(str(fields["id"]), to_json(fields))
