"""Conversations and their items: records, all statements on them as functions of a transaction, and their store.

The response that was last allowed to add to a conversation is its holder, and the conversation is locked while that
response is running work. In the foreground, `take_turn` adds a unit of work for its turn, whose lease its replica
renews. In the background, the response itself is such a unit, on whichever replica generates it. `end_turn` adds the
items of the turn in the transaction that ends the response. A replica that was stopped past its lease adds nothing once
another response holds the conversation. Items have ids, so repeating a write changes nothing.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ...database.database import Database, Transaction
from ...database.errors import StoreUnavailableError
from ...database.group_commit import GroupCommit, Work, WriteLoad
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...schemas.body import MAX_MESSAGES
from ...storage.objects import ObjectTable, Page, PageSpec, Table, TenantObjects, missing
from ...storage.work import IS_OWNED, Lease, WorkTable
from ...storage.worker import Leases
from ...tenants import tenant

MAX_ITEMS: Final = MAX_MESSAGES
MAX_ITEM_BYTES: Final = 16 * 2**20
"""Maximums of the number of items of a conversation and of their bytes, beyond which nothing is added to it."""

CONVERSATION_ID: Final = re.compile("conv_[0-9a-f]{32}")
ITEM_ID: Final = re.compile("[a-z]+_[0-9a-f]{32}(_c[0-9]{1,9})?")
"""Pattern of valid ids. Other strings are not searched for."""

RESPONSE: Final = 1
TURN: Final = 2
"""Numbers of a response's units of work: its generation in the background, and its turn in a conversation before."""


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
      lease: Lease of the turn; in the background, of the response.
      items: Items that the turn adds: while the response runs, its input; none if it has failed.
    """

    conversation: str
    lease: Lease
    items: Sequence[Item] = ()

    def ended(self, output: Sequence[Item]) -> "Turn":
        """Returns the turn at the end of its response.

        Args:
          output: Items of the response's output; none if it has failed.
        """
        return Turn(self.conversation, self.lease, [*self.items, *output] if output else ())


ITEMS: Final = Table(
    "roost_conversation_items",
    Item,
    key=("tenant", "conversation", "id"),
    under={"tenant": str, "conversation": str, "position": int},
    indexes={"list": "(tenant, conversation, position)", "ids": "(tenant, id)"},
)
CONVERSATIONS: Final = ObjectTable(
    "roost_conversations",
    ConversationRecord,
    extra={"updated": float, "num_items": int, "num_bytes": int, "holder": str | None},
    visible="updated > 0",
    age="updated",
    parts=(ITEMS,),
    indexes={"age": "(updated)", "sizes": "(tenant, updated, num_bytes)"},
)
RUNNING: Final = WorkTable("roost_running")
"""Running responses and turns, as work that replicas share."""

_OWN: Final = f"tenant = ? AND id = ? AND {CONVERSATIONS.visible}"
_OF: Final = "tenant = ? AND conversation = ?"
_ITEMS: Final = f"{ITEMS.name} WHERE {_OF}"


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


def insert_conversation(transaction: Transaction, record: ConversationRecord, items: Sequence[Item]) -> None:
    """Stores a new conversation and its first items."""
    CONVERSATIONS.insert(transaction, record, updated="{now}")
    _append(transaction, record.tenant, record.id, items)


def set_metadata(transaction: Transaction, tenant: str, conversation: str, metadata: bytes) -> None:
    """Replaces the metadata of a conversation."""
    update = f"UPDATE roost_conversations SET metadata = ?, updated = {{now}} WHERE {_OWN}"
    transaction.execute(update, metadata, tenant, conversation)


def take_turn(transaction: Transaction, tenant: str, conversation: str, response: str, owner: str) -> Lease:
    """Locks a conversation for a response, and returns the lease of its turn.

    A line of a batch that runs again takes the turn of its earlier run.

    Args:
      owner: Name of the replica that generates the response.

    Raises:
      ApiError: The conversation must not be changed.
    """
    _lock(transaction, tenant, conversation, response)
    update = f"UPDATE roost_conversations SET holder = ?, updated = {{now}} WHERE {_OWN}"
    transaction.execute(update, response, tenant, conversation)
    earlier = RUNNING.seize(transaction, owner, tenant, response, TURN)
    return RUNNING.add(transaction, owner, (tenant, response), number=TURN) if earlier is None else earlier.lease


def add_items(transaction: Transaction, tenant: str, conversation: str, items: Sequence[Item]) -> None:
    """Adds items to a conversation.

    Raises:
      ApiError: The conversation must not be changed.
    """
    _lock(transaction, tenant, conversation)
    _append(transaction, tenant, conversation, items)


def _lock(transaction: Transaction, tenant: str, conversation: str, response: str | None = None) -> None:
    """Locks the row of a conversation that may be changed.

    Args:
      response: Response that wants to add to it; None if a client does.

    Raises:
      ApiError: The conversation must not be changed.
    """
    param = None if response is None else "conversation"
    query = f"SELECT holder, num_items, num_bytes FROM roost_conversations WHERE {_OWN} {{lock}}"
    found = transaction.rows(query, tenant, conversation)
    if not found:
        raise missing("conversation", conversation, param)
    ((holder, num_items, num_bytes),) = found
    running = f"SELECT 1 FROM {RUNNING.name} WHERE tenant = ? AND id = ? AND (number = {RESPONSE} OR {IS_OWNED})"
    if holder not in (None, response) and transaction.rows(running, tenant, holder):
        raise locked(conversation, param)
    if num_items >= MAX_ITEMS or num_bytes >= MAX_ITEM_BYTES:
        size = f"{MAX_ITEMS:,} items or {MAX_ITEM_BYTES // 2**20} MiB"
        message = f"{conversation} has {size}, which is the limit: create another"
        raise ApiError(kinds.QUOTA_EXCEEDED, message, param=param)


def locked(conversation: str, param: str | None = None) -> ApiError:
    """Returns the error about a conversation that another response is going to add to."""
    message = f"another response is running in {conversation}: wait for its end, or cancel it"
    return ApiError(kinds.CONVERSATION_LOCKED, message, param=param)


def end_turn(transaction: Transaction, turn: Turn) -> None:
    """Adds the items of a turn, unless they are there already, and ends it. A deleted conversation stays deleted.

    Raises:
      ApiError: Another response has taken the turn. Then nothing is added.
    """
    tenant, response, number, _ = turn.lease
    first = turn.items[0].id if turn.items else ""
    query = f"SELECT holder, EXISTS (SELECT 1 FROM {_ITEMS} AND id = ?) FROM roost_conversations WHERE {_OWN} {{lock}}"
    rows = transaction.rows(query, tenant, turn.conversation, first, tenant, turn.conversation)
    is_held = number == RESPONSE or turn.lease in RUNNING.end(transaction, [turn.lease])
    for holder, is_added in rows:
        if is_added or not turn.items:  # `is_added` if the write is repeated, or a line of a batch runs again
            break
        if not is_held or holder != response:
            raise locked(turn.conversation, "conversation")
        _append(transaction, tenant, turn.conversation, turn.items)


def _append(transaction: Transaction, tenant: str, conversation: str, items: Sequence[Item]) -> None:
    """Adds the items that are not stored yet. The transaction has locked the conversation."""
    ((first,),) = transaction.rows(f"SELECT coalesce(max(position) + 1, 0) FROM {_ITEMS}", tenant, conversation)
    rows = ((tenant, conversation, place, item.id, item.text) for place, item in enumerate(items, first))
    sizes = [size for cursor in ITEMS.put(transaction, rows, "DO NOTHING RETURNING length(text)") for (size,) in cursor]
    _count(transaction, tenant, conversation, len(sizes), sum(sizes))


def _count(transaction: Transaction, tenant: str, conversation: str, num_items: int, num_bytes: int) -> None:
    """Adds to the counts of a conversation."""
    update = "UPDATE roost_conversations SET updated = {now}, num_items = num_items + ?, num_bytes = num_bytes + ?"
    transaction.execute(f"{update} WHERE {_OWN}", num_items, num_bytes, tenant, conversation)


def list_items(transaction: Transaction, tenant: str, conversation: str, spec: PageSpec) -> Page[Item] | None:
    """Returns a page of a conversation's items; None if the conversation has no item `spec.after`."""
    return ITEMS.page(transaction, spec, _OF, tenant, conversation, order=("position",))


def find_item(transaction: Transaction, tenant: str, conversation: str, item_id: str) -> Item | None:
    """Returns an item; None if it does not exist."""
    found = ITEMS.rows(transaction, f"WHERE {_OF} AND id = ?", tenant, conversation, item_id)
    return found[0] if found else None


def delete_item(transaction: Transaction, tenant: str, conversation: str, item_id: str) -> None:
    """Deletes an item, if it exists."""
    query = f"DELETE FROM {_ITEMS} AND id = ? RETURNING length(text)"
    for (size,) in transaction.rows(query, tenant, conversation, item_id):
        _count(transaction, tenant, conversation, -1, -size)


@dataclass(frozen=True, slots=True)
class Addition[T]:
    """A write that adds to a tenant's objects, of which the oldest ones make room.

    Attributes:
      tables: Tables of these objects.
    """

    tenant: str
    tables: Sequence[ObjectTable[Any]]
    work: Work[T]

    def __call__(self, transaction: Transaction) -> T:
        """Runs the write."""
        return self.work(transaction)


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
        await self._add(partial(insert_conversation, record=record, items=items), items)

    async def add(self, conversation_id: str, items: Sequence[Item]) -> None:
        """Adds items to a conversation.

        Raises:
          ApiError: The conversation does not exist, or is locked or full.
        """
        await self.get(conversation_id)
        own = tenant.get(), conversation_id
        await self._add(lambda each: add_items(each, *own, items), items)

    async def items(self, conversation_id: str, spec: PageSpec) -> Page[Item] | None:
        """Returns a page of the items; None if the conversation has no item `spec.after`."""
        if spec.after is not None and not ITEM_ID.fullmatch(spec.after):
            return None
        return await self.read(partial(list_items, spec=spec), conversation_id)

    async def item(self, conversation_id: str, item_id: str) -> Item:
        """Returns an item.

        Raises:
          ApiError: 404, the conversation or the item does not exist.
        """
        await self.get(conversation_id)
        is_valid = ITEM_ID.fullmatch(item_id) is not None
        found = await self.read(partial(find_item, item_id=item_id), conversation_id) if is_valid else None
        if found is None:
            raise missing("item", item_id)
        return found

    async def end(self, turn: Turn) -> None:
        """Adds the items of a turn and ends it.

        Raises:
          ApiError: Another response has taken the turn.
        """
        await self._add(lambda each: end_turn(each, turn), turn.items)
        self.note_end(turn)

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
        take = partial(take_turn, response=response_id, owner=self._leases.owner)
        with self._leases.taking(tenant.get(), response_id):
            lease = await self.write(take, conversation_id)
            if lease is None:
                raise missing("conversation", conversation_id, "conversation")
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
        return await self.commit(Addition(tenant.get(), [CONVERSATIONS], write), load_of(items))
