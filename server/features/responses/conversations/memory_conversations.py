"""Conversations in memory: the most recently changed ones, until the process exits."""

import asyncio
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from .....engine import TenantStore
from ....database.pages import Page, PageSpec, slice_page
from ....tenancy.tenant import tenant
from .records import ConversationRecord, Item, Outcome, Turn, has_room
from .store import ConversationStore

type _Key = tuple[str, str]
"""Tenant and id of a conversation."""

MAX_CONVERSATIONS: Final = 1000
MAX_BYTES: Final = 64 * 2**20

_ENTRY_BYTES: Final = 1024
_ITEM_BYTES: Final = 512
"""Memory of a conversation or an item in addition to its JSON: the objects, ids, and dictionary entries."""


@dataclass(slots=True)
class _Entry:
    """A conversation.

    Attributes:
      items: Items by id, oldest first.
      holder: Id of the response that has locked it; None if it is unlocked.
    """

    record: ConversationRecord
    items: dict[str, Item] = field(default_factory=dict)
    holder: str | None = None

    @property
    def num_item_bytes(self) -> int:
        """Bytes of the items' JSON."""
        return sum(len(item.text) for item in self.items.values())

    @property
    def num_bytes(self) -> int:
        """Memory of the conversation."""
        return self.num_item_bytes + len(self.items) * _ITEM_BYTES + sys.getsizeof(self.record.metadata) + _ENTRY_BYTES


class MemoryConversations(ConversationStore):
    """Keeps the newest conversations, and evicts the oldest ones of the tenant that holds the most."""

    def __init__(self, max_conversations: int = MAX_CONVERSATIONS, max_bytes: int = MAX_BYTES) -> None:
        self._stored = TenantStore[_Key, _Entry](max_conversations, max_bytes)
        self._in_background: set[tuple[_Key, str]] = set()

    async def create(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        self._put(_Entry(record, {item.id: item for item in items}))

    async def find(self, conversation_id: str) -> ConversationRecord | None:
        entry = self._entry(conversation_id)
        return None if entry is None else entry.record

    async def set_metadata(self, conversation_id: str, metadata: bytes) -> ConversationRecord | None:
        if (entry := self._entry(conversation_id)) is None:
            return None
        entry.record = replace(entry.record, metadata=metadata)
        self._put(entry)
        return entry.record

    async def remove(self, conversation_id: str) -> None:
        self._stored.pop(_key(conversation_id))

    async def add(self, conversation_id: str, items: Sequence[Item]) -> Outcome:
        entry = self._entry(conversation_id)
        outcome = _state(entry)
        if entry is not None and outcome is Outcome.DONE:
            self._append(entry, items)
        return outcome

    def texts(self, conversation_id: str) -> list[bytes] | None:
        """Returns the JSON of all items, oldest first; None if the conversation does not exist."""
        entry = self._entry(conversation_id)
        return None if entry is None else [item.text for item in entry.items.values()]

    async def page(self, conversation_id: str, spec: PageSpec) -> Page[Item] | None:
        entry = self._entry(conversation_id)
        return None if entry is None else slice_page(list(entry.items.values()), spec, lambda item: item.id)

    async def item(self, conversation_id: str, item_id: str) -> Item | None:
        entry = self._entry(conversation_id)
        return None if entry is None else entry.items.get(item_id)

    def items(self, item_ids: Collection[str]) -> list[Item]:
        """Returns those items that are in any of the tenant's conversations."""
        wanted = dict.fromkeys(item_ids).keys()
        entries = self._stored.of(tenant.get()) if wanted else ()
        return [entry.items[item_id] for entry in entries for item_id in entry.items.keys() & wanted]

    async def remove_item(self, conversation_id: str, item_id: str) -> None:
        entry = self._entry(conversation_id)
        if entry is not None and entry.items.pop(item_id, None) is not None:
            self._put(entry)

    async def take(self, conversation_id: str, response_id: str) -> Outcome:
        entry = self._entry(conversation_id)
        outcome = _state(entry)
        if entry is not None and outcome is Outcome.DONE:
            entry.holder = response_id
        return outcome

    async def release(self, conversation_id: str, response_id: str) -> None:
        key = _key(conversation_id)
        if (key, response_id) not in self._in_background:
            self._free(key, response_id)

    async def end(self, turn: Turn) -> bool:
        entry = self._entry(turn.conversation)
        if entry is None:
            return True
        if entry.holder != turn.response:
            return not turn.items
        entry.holder = None
        if not turn.items or turn.items[0].id not in entry.items:  # otherwise a line of a batch runs again
            self._append(entry, turn.items)
        return True

    def hold(self, turn: Turn, task: asyncio.Task[Any]) -> None:
        """Keeps the turn of a background response until its task has ended."""
        held = _key(turn.conversation), turn.response
        self._in_background.add(held)

        def free(_: asyncio.Task[Any]) -> None:
            self._in_background.discard(held)
            self._free(*held)

        task.add_done_callback(free)

    def _free(self, key: _Key, response_id: str) -> None:
        entry = self._stored.get(key)
        if entry is not None and entry.holder == response_id:
            entry.holder = None

    def _append(self, entry: _Entry, items: Sequence[Item]) -> None:
        entry.items |= {item.id: item for item in items}
        self._put(entry)

    def _entry(self, conversation_id: str) -> _Entry | None:
        return self._stored.get(_key(conversation_id))

    def _put(self, entry: _Entry) -> None:
        """Stores a conversation as the newest of its tenant."""
        self._stored.put(_key(entry.record.id), tenant.get(), entry, entry.num_bytes)


def _state(entry: _Entry | None) -> Outcome:
    """Returns whether a conversation may be changed."""
    if entry is None:
        return Outcome.MISSING
    if entry.holder is not None:
        return Outcome.LOCKED
    return Outcome.DONE if has_room(len(entry.items), entry.num_item_bytes) else Outcome.FULL


def _key(conversation_id: str) -> _Key:
    return tenant.get(), conversation_id
