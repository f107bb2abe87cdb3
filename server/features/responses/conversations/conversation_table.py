"""All statements on conversations, as functions of a transaction.

A response that continues a conversation locks it: `take` makes the response its holder for the duration of a lease. A
background response has a running row, which then keeps the conversation locked on whichever replica generates it. For
other responses, their replica extends the lease. `end` adds the items of the turn in the transaction that ends the
response. Items have ids, so repeating it changes nothing.

A conversation that is deleted is hidden first: its row has `updated = 0`, and takes no bytes. Then its items are
deleted, a limited number in each transaction, and its row at the end.
"""

from collections.abc import Iterable, Sequence
from itertools import batched
from typing import Final

from ....database.database import Transaction, placeholders
from ....storage.objects import ObjectTable, Page, PageSpec, Table
from .records import ConversationRecord, Item, Outcome, Turn, has_room

LEASE_S: Final = 15.0
"""Seconds after its last extension at which a lease ends, so that another response may take the conversation."""

_MAX_ROWS: Final = 250
"""Maximum number of rows that a statement stores or extends."""

MAX_REMOVED: Final = 1000
"""Maximum number of items that a transaction deletes of hidden conversations."""

IS_VISIBLE: Final = "updated > 0"
"""Condition of conversations that are not hidden."""

CONVERSATIONS: Final = ObjectTable(
    "roost_conversations",
    ConversationRecord,
    extra={"updated": float, "num_items": int, "num_bytes": int, "holder": str | None, "locked_until": float},
    visible=IS_VISIBLE,
    age="updated",
    indexes={"age": "(updated)", "sizes": "(tenant, updated, num_bytes)"},
)
ITEMS: Final = Table(
    "roost_conversation_items",
    Item,
    key=("tenant", "conversation", "id"),
    under={"tenant": str, "conversation": str, "position": int},
    indexes={"list": "(tenant, conversation, position)", "ids": "(tenant, id)"},
)

_OWN: Final = f"tenant = ? AND id = ? AND {IS_VISIBLE}"
_OF: Final = "tenant = ? AND conversation = ?"
_ITEMS: Final = f"{ITEMS.name} WHERE {_OF}"


def insert(transaction: Transaction, record: ConversationRecord, items: Sequence[Item]) -> None:
    """Stores a new conversation and its first items."""
    CONVERSATIONS.insert(transaction, record, updated="{now}")
    _append(transaction, record.tenant, record.id, items)


def set_metadata(
    transaction: Transaction, tenant: str, conversation: str, metadata: bytes
) -> ConversationRecord | None:
    """Replaces the metadata of a conversation, and returns it; None if it does not exist."""
    update = f"UPDATE roost_conversations SET metadata = ?, updated = {{now}} WHERE {_OWN}"
    transaction.execute(update, metadata, tenant, conversation)
    return CONVERSATIONS.find(transaction, tenant, conversation)


def hide(transaction: Transaction, tenant: str, conversation: str) -> None:
    """Hides a conversation, whose items `remove_hidden` deletes. A response that runs in it adds nothing any more."""
    update = "UPDATE roost_conversations SET updated = 0, num_items = 0, num_bytes = 0, holder = NULL"
    transaction.execute(f"{update} WHERE {_OWN}", tenant, conversation)


def remove_hidden(transaction: Transaction) -> bool:
    """Deletes the next items of a hidden conversation, then its row; returns whether there was a hidden one."""
    query = "SELECT tenant, id FROM roost_conversations WHERE updated = 0 LIMIT 1 {skip_locked}"
    found = transaction.rows(query)
    for own in found:
        some = f"SELECT id FROM {_ITEMS} LIMIT ?"
        deleted = transaction.execute(f"DELETE FROM {_ITEMS} AND id IN ({some})", *own, *own, MAX_REMOVED)
        if deleted.rowcount < MAX_REMOVED:
            transaction.execute("DELETE FROM roost_conversations WHERE tenant = ? AND id = ? AND updated = 0", *own)
    return bool(found)


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
    return Outcome.DONE if has_room(num_items, num_bytes) else Outcome.FULL


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
