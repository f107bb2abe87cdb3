"""Conversations and their items: records, and all statements on them, as functions of a transaction.

A response that continues a conversation locks it: `take` makes the response its holder for the duration of a lease. A
background response has a running row, which then keeps the conversation locked on whichever replica generates it. For
other responses, their replica extends the lease. `end` adds the items of the turn in the transaction that ends the
response. Items have ids, so repeating it changes nothing.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import batched
from typing import Final

from ...database.database import Transaction, placeholders
from ...database.group_commit import WriteLoad
from ...schemas.body import MAX_MESSAGES
from ...storage.objects import ObjectTable, Page, PageSpec, Table
from ...storage.work import LEASE_S

MAX_ITEMS: Final = MAX_MESSAGES
MAX_ITEM_BYTES: Final = 16 * 2**20
"""Maximums of the number of items of a conversation and of their bytes, beyond which nothing is added to it."""

CONVERSATION_ID: Final = re.compile("conv_[0-9a-f]{32}")
ITEM_ID: Final = re.compile("[a-z]+_[0-9a-f]{32}(_c[0-9]{1,9})?")
"""Pattern of valid ids. Other strings are not searched for."""

_MAX_ROWS: Final = 250
"""Maximum number of rows that a statement stores or extends."""


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
    extra={"updated": float, "num_items": int, "num_bytes": int, "holder": str | None, "locked_until": float},
    visible="updated > 0",
    age="updated",
    parts=(ITEMS,),
    indexes={"age": "(updated)", "sizes": "(tenant, updated, num_bytes)"},
)
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


def insert(transaction: Transaction, record: ConversationRecord, items: Sequence[Item]) -> None:
    """Stores a new conversation and its first items."""
    CONVERSATIONS.insert(transaction, record, updated="{now}")
    _append(transaction, record.tenant, record.id, items)


def set_metadata(transaction: Transaction, tenant: str, conversation: str, metadata: bytes) -> None:
    """Replaces the metadata of a conversation."""
    update = f"UPDATE roost_conversations SET metadata = ?, updated = {{now}} WHERE {_OWN}"
    transaction.execute(update, metadata, tenant, conversation)


def take(transaction: Transaction, tenant: str, conversation: str, response: str) -> Outcome:
    """Locks a conversation for a response, if it has room for more items."""
    outcome = _state(transaction, tenant, conversation, response)
    if outcome is Outcome.DONE:
        update = f"UPDATE roost_conversations SET holder = ?, locked_until = {{now}} + {LEASE_S}, updated = {{now}}"
        transaction.execute(f"{update} WHERE {_OWN}", response, tenant, conversation)
    return outcome


def add(transaction: Transaction, tenant: str, conversation: str, items: Sequence[Item]) -> Outcome:
    """Adds items to a conversation."""
    outcome = _state(transaction, tenant, conversation)
    if outcome is Outcome.DONE:
        _append(transaction, tenant, conversation, items)
    return outcome


def _state(transaction: Transaction, tenant: str, conversation: str, response: str | None = None) -> Outcome:
    """Locks the row of a conversation, and returns whether it may be changed, by a response if one is named."""
    query = f"""
        SELECT holder, locked_until > {{now}}, num_items, num_bytes FROM roost_conversations WHERE {_OWN} {{lock}}
    """
    rows = transaction.rows(query, tenant, conversation)
    if not rows:
        return Outcome.MISSING
    ((holder, is_leased, num_items, num_bytes),) = rows
    if holder not in (None, response) and (is_leased or _is_running(transaction, tenant, holder)):
        return Outcome.LOCKED
    has_room = num_items < MAX_ITEMS and num_bytes < MAX_ITEM_BYTES
    return Outcome.DONE if has_room else Outcome.FULL


def _is_running(transaction: Transaction, tenant: str, response: str) -> bool:
    query = "SELECT 1 FROM roost_responses WHERE tenant = ? AND id = ? AND is_running = 1"
    return bool(transaction.rows(query, tenant, response))


def renew(transaction: Transaction, turns: Iterable[tuple[str, str, str]]) -> None:
    """Extends the leases of turns that have not ended.

    Args:
      turns: Tenant, id of the conversation, and id of the response of each.
    """
    for some in batched(turns, _MAX_ROWS):
        transaction.execute(
            f"""
            UPDATE roost_conversations SET locked_until = {{now}} + {LEASE_S}
            WHERE (tenant, id, holder) IN (VALUES {placeholders(len(some), 3)}) AND locked_until > {{now}}
            """,
            *(value for turn in some for value in turn),
        )


def release(transaction: Transaction, tenant: str, conversation: str, response: str) -> None:
    """Ends the lease of a response. One that runs in the background keeps the conversation locked."""
    update = f"UPDATE roost_conversations SET locked_until = 0 WHERE {_OWN} AND holder = ?"
    transaction.execute(update, tenant, conversation, response)


def end(transaction: Transaction, tenant: str, turn: Turn) -> bool:
    """Adds the items of a turn, unless they are there already, and ends it. A deleted conversation stays deleted.

    Returns:
      Whether the response still had the turn, or had nothing to add. If not, nothing is changed.
    """
    first = turn.items[0].id if turn.items else ""
    query = f"SELECT holder, EXISTS (SELECT 1 FROM {_ITEMS} AND id = ?) FROM roost_conversations WHERE {_OWN} {{lock}}"
    rows = transaction.rows(query, tenant, turn.conversation, first, tenant, turn.conversation)
    if not rows:
        return True
    ((holder, is_added),) = rows
    if holder != turn.response:
        return not turn.items
    if not is_added:  # otherwise a line of a batch runs again
        _append(transaction, tenant, turn.conversation, turn.items)
    release(transaction, tenant, turn.conversation, turn.response)
    return True


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


def read_list(transaction: Transaction, tenant: str, conversation: str, spec: PageSpec) -> Page[Item] | None:
    """Returns a page of a conversation's items; None if the conversation has no item `spec.after`."""
    return ITEMS.page(transaction, spec, _OF, tenant, conversation, order=("position",))


def item(transaction: Transaction, tenant: str, conversation: str, item_id: str) -> Item | None:
    """Returns an item; None if it does not exist."""
    found = ITEMS.rows(transaction, f"WHERE {_OF} AND id = ?", tenant, conversation, item_id)
    return found[0] if found else None


def delete_item(transaction: Transaction, tenant: str, conversation: str, item_id: str) -> None:
    """Deletes an item, if it exists."""
    query = f"DELETE FROM {_ITEMS} AND id = ? RETURNING length(text)"
    for (size,) in transaction.rows(query, tenant, conversation, item_id):
        _count(transaction, tenant, conversation, -1, -size)
