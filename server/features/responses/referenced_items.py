"""Items to which an input refers by their ids: those of stored conversations and responses."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

from ...errors import kinds
from ...errors.request_errors import ApiError
from ...generation.admission import admission
from ...text.conversation import ConversationMessage
from .conversations.items import stored_messages
from .conversations.records import Item
from .input_items import input_items
from .response_store import ResponseStore, StoredResponse

_ITEM_ID: Final = re.compile("(?:msg|fc|fco)_([0-9a-f]{32})(_c?[0-9]{1,9})?")
"""Ids that a response's items may have: its output's, and those by which its input is listed."""


async def referenced_messages(store: ResponseStore, item_ids: Sequence[str]) -> dict[str, ConversationMessage]:
    """Returns the messages of stored items, by the items' ids.

    Raises:
      ApiError: The tenant has no stored conversation or response with one of the items.
    """
    if not item_ids:
        return {}
    async with store.locks.hold():
        kept = await store.conversations.items(list(dict.fromkeys(item_ids)))
        holders = await _holders(store, set(item_ids) - {item.id for item in kept})
        return await admission.get().run(lambda: _messages(kept, holders), is_long=True)


async def _holders(store: ResponseStore, item_ids: Collection[str]) -> dict[str, StoredResponse]:
    """Returns the response of each item, whose id holds the response's. Each response is read once."""
    read: dict[str, StoredResponse] = {}
    holders = {}
    for item_id in item_ids:
        parts = _ITEM_ID.fullmatch(item_id)
        response_id = "" if parts is None else f"resp_{parts[1]}"
        stored = read.get(response_id) or await store.find(response_id)
        if stored is None:
            raise _no_item(item_id)
        holders[item_id] = read[response_id] = stored
    return holders


def _messages(kept: Sequence[Item], holders: Mapping[str, StoredResponse]) -> dict[str, ConversationMessage]:
    """Returns the messages of items by id. Each response is parsed once."""
    items = admission.get().parse_stored(b"[" + b",".join(item.text for item in kept) + b"]")
    found = {item["id"]: item for item in items}
    for stored in {each.id: each for each in holders.values()}.values():
        wanted = {item_id for item_id, each in holders.items() if each is stored}
        found |= {item["id"]: item for item in _items(stored, wanted) if item["id"] in wanted}
    for item_id in holders:
        if item_id not in found:
            raise _no_item(item_id)
    return dict(zip(found, stored_messages(list(found.values())), strict=True))


def _items(stored: StoredResponse, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yields the items of a response's output, and those of its input if one of them is wanted."""
    output = admission.get().parse_stored(stored.response)["output"]
    yield from output
    if not {item["id"] for item in output}.issuperset(wanted):
        yield from input_items(stored)


def _no_item(item_id: str) -> ApiError:
    return ApiError(kinds.NO_SUCH_OBJECT, f"there is no stored item with the id {item_id[:100]!r}", param="input")
