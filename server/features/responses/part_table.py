"""Parts of the store that bodies name: their packing, and the statements that find them, as functions of a transaction.

Sizes are found without reading contents.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import batched
from typing import Any, Final, Literal, NamedTuple

from pydantic import TypeAdapter

from ...database.database import Transaction, placeholders
from ...generation.admission import admission
from ...text.chat_format import ConversationMessage
from .conversation_table import CONVERSATION_ID, CONVERSATIONS, ITEM_ID

RESPONSE_ID: Final = re.compile("resp_[0-9a-f]{32}")

STATE_ROLE: Final = "state"
"""Role of a history's first message if its content is the id of a saved state, which the other messages continue."""

_MESSAGES: Final = TypeAdapter(list[ConversationMessage])

type PartKind = Literal["history", "output", "conversation", "item"]
"""The history or the output of a response, all items of a conversation, or an item of any conversation."""


class StoredPart(NamedTuple):
    """Key of something in the store that bodies name.

    Attributes:
      id: Id of the response, the conversation or the item.
    """

    kind: PartKind
    id: str


def pack(messages: Sequence[ConversationMessage]) -> bytes:
    """Returns messages in the encoding in which they are stored."""
    return _MESSAGES.dump_json(list(messages), exclude_defaults=True)


def unpack(packed: bytes) -> list[ConversationMessage]:
    """Returns the messages of `pack`."""
    return _MESSAGES.validate_python(admission.get().parse_stored(packed))


def num_messages(packed: bytes) -> int:
    """Returns the number of messages of `pack`, without unpacking them. Quotation marks in texts are escaped."""
    return packed.count(b'"role":')


_IDS: Final[Mapping[PartKind, re.Pattern[str]]] = {
    "history": RESPONSE_ID,
    "output": RESPONSE_ID,
    "conversation": CONVERSATION_ID,
    "item": ITEM_ID,
}
"""Patterns of ids. Other strings from clients never reach the database."""

_MAX_NAMED: Final = 250
"""Maximum number of ids in a statement."""

_OF_RESPONSES: Final = "FROM roost_responses WHERE tenant = ? AND id IN {ids}"
_OF_ITEMS: Final = f"""
    FROM roost_conversation_items AS found WHERE tenant = ? AND id IN {{ids}} AND EXISTS (
        SELECT 1 FROM roost_conversations
        WHERE roost_conversations.tenant = found.tenant AND roost_conversations.id = conversation
            AND {CONVERSATIONS.visible})
"""

_SIZES: Final[Mapping[PartKind, str]] = {
    "history": f"SELECT id, 0, length(history) {_OF_RESPONSES}",
    "output": f"SELECT id, 0, length(output) {_OF_RESPONSES}",
    "conversation": f"""
        SELECT id, num_items, num_bytes FROM roost_conversations
        WHERE tenant = ? AND id IN {{ids}} AND {CONVERSATIONS.visible}
    """,
    "item": f"SELECT id, 0, length(text) {_OF_ITEMS}",
}
_CONTENTS: Final[Mapping[PartKind, str]] = {
    "history": f"SELECT id, history {_OF_RESPONSES}",
    "output": f"SELECT id, output {_OF_RESPONSES}",
    "conversation": """
        SELECT conversation, text FROM roost_conversation_items WHERE tenant = ? AND conversation IN {ids}
        ORDER BY position
    """,
    "item": f"SELECT id, text {_OF_ITEMS}",
}
"""Statements for each kind of part."""


def sizes(transaction: Transaction, tenant: str, parts: Collection[StoredPart]) -> dict[StoredPart, tuple[int, int]]:
    """Returns the numbers of items and of bytes of those parts that exist.

    The number of items is known of conversations only, and 0 for other parts.
    """
    rows = _rows(transaction, tenant, parts, _SIZES)
    return {part: (int(num_items), int(num_bytes)) for part, num_items, num_bytes in rows}


def contents(transaction: Transaction, tenant: str, parts: Collection[StoredPart]) -> dict[StoredPart, list[bytes]]:
    """Returns the contents of those parts that exist."""
    found: dict[StoredPart, list[bytes]] = {part: [] for part in parts if part.kind == "conversation"}
    for part, text in _rows(transaction, tenant, parts, _CONTENTS):
        found.setdefault(part, []).append(bytes(text))
    return found


def _rows(
    transaction: Transaction, tenant: str, parts: Collection[StoredPart], statements: Mapping[PartKind, str]
) -> Iterator[tuple[Any, ...]]:
    """Yields the rows of a statement for each kind of part, which begin with the part."""
    for kind, pattern in _IDS.items():
        ids = (part.id for part in parts if part.kind == kind and pattern.fullmatch(part.id))
        for some in batched(ids, _MAX_NAMED):
            statement = statements[kind].format(ids=placeholders(1, len(some)))
            for name, *values in transaction.rows(statement, tenant, *some):
                yield StoredPart(kind, name), *values
