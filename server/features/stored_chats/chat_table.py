"""All statements on stored chat completions, as functions of a transaction."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...database.database import Transaction, placeholders
from ...database.expiry import BoundedRows, Name
from ...database.pages import Page, PageSpec, read_page
from ...http.response_parts import to_json
from .records import MAX_PAGE_BYTES, ChatFilter, StoredChat, described

ROWS: Final = BoundedRows("roost_chats")
"""Limited rows of completions."""

_OWN: Final = "tenant = ? AND id = ?"
_HAS_PAIR: Final = """
    AND EXISTS (
        SELECT 1 FROM roost_chat_metadata AS pair
        WHERE pair.tenant = roost_chats.tenant AND pair.chat = roost_chats.id AND pair.name = ? AND pair.value = ?)
"""


def insert(transaction: Transaction, tenant: str, chat: StoredChat) -> None:
    """Stores a completion. Repeating it changes nothing."""
    transaction.execute(
        """
        INSERT INTO roost_chats (tenant, id, created, model, completion, messages, metadata, num_bytes)
        VALUES (?, ?, {now}, ?, ?, ?, ?, ?) ON CONFLICT (tenant, id) DO NOTHING
        """,
        tenant,
        chat.id,
        chat.model.encode(),
        chat.completion,
        chat.messages,
        to_json(chat.metadata),
        chat.num_bytes,
    )
    _set_pairs(transaction, tenant, chat.id, chat.metadata)


def find(transaction: Transaction, tenant: str, chat_id: str) -> bytes | None:
    """Returns the JSON of a completion; None if it does not exist."""
    query = f"SELECT completion, metadata FROM roost_chats WHERE {_OWN}"
    rows = transaction.rows(query, tenant, chat_id)
    return described(bytes(rows[0][0]), bytes(rows[0][1])) if rows else None


def messages(transaction: Transaction, tenant: str, chat_id: str) -> bytes | None:
    """Returns the JSON of the messages of a completion's request; None if the completion does not exist."""
    rows = transaction.rows(f"SELECT messages FROM roost_chats WHERE {_OWN}", tenant, chat_id)
    return bytes(rows[0][0]) if rows else None


def set_metadata(transaction: Transaction, tenant: str, chat_id: str, metadata: Mapping[str, str]) -> bytes | None:
    """Replaces the metadata of a completion, and returns its JSON; None if it does not exist."""
    text = to_json(metadata)
    changed = transaction.execute(
        f"""
        UPDATE roost_chats SET num_bytes = length(completion) + length(messages) + ?, metadata = ? WHERE {_OWN}
        """,
        len(text),
        text,
        tenant,
        chat_id,
    )
    if changed.rowcount:
        transaction.execute("DELETE FROM roost_chat_metadata WHERE tenant = ? AND chat = ?", tenant, chat_id)
        _set_pairs(transaction, tenant, chat_id, metadata)
    return find(transaction, tenant, chat_id)


def _set_pairs(transaction: Transaction, tenant: str, chat_id: str, metadata: Mapping[str, str]) -> None:
    """Stores the pairs of a completion's metadata, by which lists are filtered."""
    if metadata:
        transaction.execute(
            f"""
            INSERT INTO roost_chat_metadata (tenant, chat, name, value) VALUES {placeholders(len(metadata), 4)}
            ON CONFLICT (tenant, chat, name) DO NOTHING
            """,
            *(part for name, value in metadata.items() for part in (tenant, chat_id, name.encode(), value.encode())),
        )


def delete_all(transaction: Transaction, names: Sequence[Name]) -> None:
    """Deletes completions that exist."""
    for name in names:
        transaction.execute("DELETE FROM roost_chat_metadata WHERE tenant = ? AND chat = ?", *name)
        transaction.execute(f"DELETE FROM roost_chats WHERE {_OWN}", *name)


def read_list(
    transaction: Transaction, tenant: str, spec: PageSpec, only: ChatFilter
) -> Page[tuple[str, bytes]] | None:
    """Returns ids and JSON of a page of completions; None if the list has no completion `spec.after`.

    A page ends early if its bytes would exceed the limit.
    """
    source, values = "roost_chats WHERE tenant = ?", list[Any]([tenant])
    if only.model is not None:
        source, values = f"{source} AND model = ?", [*values, only.model.encode()]
    for name, value in only.metadata.items():
        source, values = source + _HAS_PAIR, [*values, name.encode(), value.encode()]
    found = read_page(transaction, "id, num_bytes", source, values, spec)
    if found is None:
        return None
    ids = _within_bytes(found.items)
    texts = ((chat_id, find(transaction, tenant, chat_id)) for chat_id in ids)
    items = [(chat_id, text) for chat_id, text in texts if text is not None]
    return Page(items, found.has_more or len(ids) < len(found.items))


def _within_bytes(sizes: Sequence[tuple[Any, ...]]) -> list[str]:
    """Returns the first ids whose completions fit into the bytes of a page, and at least one."""
    ids, total = list[str](), 0
    for chat_id, num_bytes in sizes:
        total += num_bytes
        if ids and total > MAX_PAGE_BYTES:
            break
        ids.append(chat_id)
    return ids
