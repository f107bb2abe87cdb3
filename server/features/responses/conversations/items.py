"""Converts messages and outputs of responses to items of conversations, and items to messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

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
        return stored_messages(before_turn(admission.get().parse_stored(b"[" + b",".join(self.texts) + b"]")))


def before_turn(items: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns the items that a response continues: if its work has run before, those before the turn that it added."""
    own = admission.get()
    if not own.is_repeated:
        return items
    turn = own.new_id("item 0"), own.new_id("response")
    return list(takewhile(lambda item: not any(each in item["id"] for each in turn), items))


def stored_messages(items: Sequence[Mapping[str, Any]]) -> list[ConversationMessage]:
    """Returns the messages of stored items, one for each."""
    return messages_of(_ITEMS.validate_python(items), {})


def new_items(messages: Sequence[ConversationMessage]) -> list[Item]:
    """Returns the items of messages, with new ids."""
    own, items = admission.get(), (item for message in messages for item in items_of_message(message))
    return [_item({**item, "id": f"{item['id']}_{own.new_id(f'item {place}')}"}) for place, item in enumerate(items)]


def output_items(response: Mapping[str, Any]) -> list[Item]:
    """Returns the items that an ended response adds to its conversation; none if it failed or has no conversation."""
    if "conversation" not in response or response["status"] not in _ADDED:
        return []
    return [_item(item) for item in response["output"]]


def _item(fields: Mapping[str, Any]) -> Item:
    return Item(str(fields["id"]), to_json(fields))
