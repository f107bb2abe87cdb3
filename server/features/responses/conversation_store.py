"""Conversations of a server, of which each tenant sees its own, and the conversion of messages to their items."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import takewhile
from typing import Any, Final
from uuid import uuid4

from ...database.database import Database, Transaction
from ...database.errors import StoreUnavailableError
from ...database.group_commit import GroupCommit
from ...generation.admission import admission
from ...http.responses import to_json
from ...storage.objects import Page, PageSpec
from ...storage.tenant_objects import TenantObjects, missing
from ...storage.work import Lease
from ...storage.worker import Leases
from ...tenants import tenant
from ...text.chat_format import ConversationMessage
from . import conversation_table
from .conversation_table import (
    CONVERSATION_ID,
    CONVERSATIONS,
    ITEM_ID,
    RUNNING,
    ConversationRecord,
    Item,
    Turn,
    load_of,
)
from .input_items import items_of_message
from .response_table import Addition

_ADDED: Final = ("completed", "incomplete")
"""Statuses of responses whose output is added to their conversation."""


class ConversationStore(TenantObjects[ConversationRecord]):
    """Keeps conversations in the database of the responses.

    Args:
      commits: Commits writes of clients, and of responses that have ended.
      leases: Leases of this replica on running responses and turns.
    """

    def __init__(self, database: Database, commits: GroupCommit, leases: Leases) -> None:
        super().__init__(CONVERSATIONS, CONVERSATION_ID, "conversation", database, commits)
        self._leases = leases

    async def create(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        """Stores a new conversation and its first items."""
        await self._add(partial(conversation_table.insert, record=record, items=items), items)

    async def add(self, conversation_id: str, items: Sequence[Item]) -> None:
        """Adds items to a conversation.

        Raises:
          ApiError: The conversation does not exist, or is locked or full.
        """
        if not CONVERSATION_ID.fullmatch(conversation_id):
            raise missing("conversation", conversation_id)
        own = tenant.get(), conversation_id
        error = await self._add(lambda each: conversation_table.add(each, *own, items), items)
        if error is not None:
            raise error

    async def items(self, conversation_id: str, spec: PageSpec) -> Page[Item] | None:
        """Returns a page of the items; None if the conversation has no item `spec.after`."""
        if spec.after is not None and not ITEM_ID.fullmatch(spec.after):
            return None
        return await self.read(partial(conversation_table.read_list, spec=spec), conversation_id)

    async def item(self, conversation_id: str, item_id: str) -> Item | None:
        """Returns an item; None if it does not exist."""
        if not ITEM_ID.fullmatch(item_id):
            return None
        return await self.read(partial(conversation_table.item, item_id=item_id), conversation_id)

    async def end(self, turn: Turn) -> bool:
        """Adds the items of a turn and ends it; returns whether the response had the turn, or had nothing to add."""
        has_ended = await self._add(lambda each: conversation_table.end(each, turn), turn.items)
        self.note_end(turn)
        return has_ended

    def note_end(self, turn: Turn | None) -> None:
        """Notes that a turn has ended in the database, or is a background response's now."""
        if turn is not None:
            self._leases.drop(turn.lease)

    @asynccontextmanager
    async def turn(self, conversation_id: str | None, response_id: str) -> AsyncGenerator[Lease | None]:
        """Locks a conversation for a response until the end of the `with` block, or until the end of a background
        response, and yields the lease of its turn.

        Args:
          conversation_id: Id of the conversation; None locks nothing.

        Raises:
          ApiError: The conversation does not exist, or is locked or full.
        """
        if conversation_id is None:
            yield None
            return
        take = partial(conversation_table.take, response=response_id, owner=self._leases.owner)
        with self._leases.taking(tenant.get(), response_id):
            lease = await self.write(take, conversation_id)
            if not isinstance(lease, Lease):
                raise lease or missing("conversation", conversation_id, "conversation")
            task = asyncio.current_task()
            assert task is not None
            self._leases.hold(lease, task)
        try:
            yield lease
        finally:
            if lease in self._leases.held:
                with suppress(StoreUnavailableError):  # the lease then ends by itself
                    await self.commit(lambda each: RUNNING.end(each, [lease]))
                self._leases.drop(lease)

    async def _add[T](self, write: Callable[[Transaction], T], items: Sequence[Item]) -> T:
        return await self.commit(Addition(tenant.get(), write), load_of(items))


def before_turn(items: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns the items that a response continues; if its work has run before, only the items before its own turn."""
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


def new_conversation(metadata: Mapping[str, str]) -> ConversationRecord:
    """Returns a new conversation, which is not stored yet."""
    return ConversationRecord(tenant.get(), f"conv_{uuid4().hex}", int(time.time()), to_json(metadata))


def described_conversation(record: ConversationRecord) -> dict[str, Any]:
    """Returns a conversation in the form that clients receive."""
    metadata = admission.get().parse_stored(record.metadata)
    return {"id": record.id, "object": "conversation", "created_at": record.created, "metadata": metadata}
