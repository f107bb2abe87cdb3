"""Converts messages and outputs of responses to items of conversations."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Final

from ....generation.admission import admission
from ....http.response_parts import to_json
from ....text.conversation import ConversationMessage
from ..input_items import items_of_message
from .records import Item

_ADDED: Final = ("completed", "incomplete")
"""Statuses of responses whose output is added to their conversation."""


def before_turn(items: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns the items that a response continues: if its work has run before, those before the turn that it added."""
    own = admission.get()
    if not own.is_repeated:
        return items
    turn = own.new_id("item 0"), own.new_id("response")
    return list(takewhile(lambda item: not any(each in item["id"] for each in turn), items))


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
