"""Expansion of a body's references to stored items, responses and conversations, and of its compaction items.

A short body may stand for much. Referenced content counts in bytes and items, as often as it is referenced. It is
limited, and charged to the admission, before it is read from the store or unpacked.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Literal, NamedTuple

from ...database.database import Transaction, placeholders
from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value
from ...generation.admission import admission, stored_json
from ...http.responses import to_json
from ...storage.objects import missing
from ...tenants import tenant
from ...text.chat_format import ConversationMessage
from .conversations import CONVERSATION_ID, CONVERSATIONS, ITEM_ID
from .input_items import CompactionItem, ItemReference, ResponseItem, before_turn, items_with_ids, own_messages
from .response_store import ResponseStore
from .response_table import RESPONSE_ID, num_messages, unpack

MAX_ADDED: Final = 1024
"""Maximum number of items that a request adds to a conversation, since one transaction stores them."""

_LONG: Final = 64 * 2**10
"""Bytes above which a tenant's expansions take turns, and run on a worker thread for a millisecond or more."""

_MEMORY_OF_BYTE: Final = 8
_MEMORY_OF_ITEM: Final = 2048
"""Bytes that each byte and each item takes while it is converted: JSON, objects, texts and token ids."""

_ITEM_ID: Final = re.compile("(?:msg|fc|fco)_([0-9a-f]{32})(?:(_[0-9]{1,9})|_c[0-9]{1,9})?")
"""Ids that a response's items may have. Those by which its input is listed end with a place."""


type PartKind = Literal["history", "output", "conversation", "item"]
"""The history or the output of a response, all items of a conversation, or an item of any conversation."""


class StoredPart(NamedTuple):
    """Key of something in the store that bodies name.

    Attributes:
      id: Id of the response, the conversation or the item.
    """

    kind: PartKind
    id: str


class Room(NamedTuple):
    """Limits on the expansion of a body.

    Attributes:
      max_items: Maximum number of items, including the body's own.
      max_bytes: Maximum bytes of referenced and packed content.
    """

    max_items: int
    max_bytes: int


type Expansion = tuple[list[ConversationMessage], list[ConversationMessage]]
"""Messages that a body continues, of which the first may have `STATE_ROLE`, and those of its items."""


@asynccontextmanager
async def expanded(
    store: ResponseStore,
    room: Room,
    param: str,
    items: Sequence[ResponseItem],
    earlier: Mapping[StoredPart, str] | None = None,
) -> AsyncGenerator[Expansion]:
    """Yields the messages that a body stands for. They are charged until the end of the `with` block.

    A tenant has at most one long expansion at a time.

    Args:
      param: Field that has the items.
      items: Items of the body.
      earlier: Stored parts that the body continues, and the field that names each.

    Raises:
      ApiError: 413, the body expands to too much; 404 or 400, something that it names does not exist or is damaged.
    """
    own, body = admission.get(), _Body(param, items, earlier or {}, room)
    body.measure(await read_parts(store, body.candidates, are_sizes=True))
    is_long, charged = body.num_bytes >= _LONG, body.cost
    async with AsyncExitStack() as stack:
        if is_long:
            await stack.enter_async_context(store.locks.hold())
        await stack.enter_async_context(own.holding(charged))
        contents = await read_parts(store, body.parts, are_sizes=False)
        expansion = await own.run(lambda: body.expansion(contents), is_long=is_long)
        await stack.enter_async_context(own.holding(body.cost - charged))
        yield expansion


async def read_parts(
    store: ResponseStore, parts: Collection[StoredPart], *, are_sizes: bool
) -> Mapping[StoredPart, list[Any]]:
    """Returns what `found_parts` finds of the current tenant's parts."""
    owner = tenant.get()
    return await store.run(lambda each: found_parts(each, owner, parts, are_sizes=are_sizes)) if parts else {}


class _Body:
    """References, packed items and continued history of a body.

    Attributes:
      num_items: Items that the body expands to so far.
      num_bytes: Bytes that it expands to so far.
    """

    def __init__(
        self, param: str, items: Sequence[ResponseItem], earlier: Mapping[StoredPart, str], room: Room
    ) -> None:
        self.num_items, self.num_bytes = len(items), 0
        self._items = [(f"{param}[{place}]", item) for place, item in enumerate(items)]
        self._earlier = earlier
        self._room = room
        self._referred: dict[str, StoredPart] = {}

    @property
    def cost(self) -> int:
        """Memory that the expansion takes."""
        return _MEMORY_OF_BYTE * self.num_bytes + _MEMORY_OF_ITEM * self.num_items

    @property
    def candidates(self) -> set[StoredPart]:
        """Parts that the body names or may name."""
        references = (item.id for _, item in self._items if isinstance(item, ItemReference))
        return {*self._earlier, *itertools.chain.from_iterable(map(_parts_of, references))}

    @property
    def parts(self) -> set[StoredPart]:
        """Parts to read from the store."""
        return {*self._earlier, *self._referred.values()}

    def measure(self, sizes: Mapping[StoredPart, list[int]]) -> None:
        """Counts referenced content by the sizes that the store knows, and packed content by its length.

        Raises:
          ApiError: Something does not exist, or is too much.
        """
        for part, param in self._earlier.items():
            if part not in sizes:
                raise _not_found(part, param)
            self._count(param, *sizes[part])
        for param, item in self._items:
            if isinstance(item, ItemReference):
                named = next((each for each in _parts_of(item.id) if each in sizes), None)
                if named is None:
                    raise missing("stored item", item.id, param)
                self._referred[item.id] = named
                self._count(param, num_bytes=sizes[named][1])
                if named.kind == "history":  # read once; the items that are named count when they are known
                    sizes[named][:] = 0, 0
            elif isinstance(item, CompactionItem) and item.is_own:
                self._count(param, num_bytes=len(item.encrypted_content))

    def expansion(self, contents: Mapping[StoredPart, Sequence[bytes]]) -> Expansion:
        """Returns the messages, and counts content whose size the store does not know.

        Raises:
          ApiError: Something does not exist any more, is damaged, or is too much.
        """
        earlier = []
        for part, param in self._earlier.items():
            texts = contents.get(part, ())
            if part.kind != "conversation":
                if not texts:
                    raise _not_found(part, param)
                self._count(param, sum(map(num_messages, texts)))
            earlier += _messages(part, texts)
        referred = dict(_referred_items(self._referred, contents))
        found = dict(zip(referred, own_messages(list(referred.values())), strict=True))
        own = [message for param, item in self._items for message in self._messages_of(param, item, referred, found)]
        return earlier, own

    def _count(self, param: str, num_items: int = 0, num_bytes: int = 0) -> None:
        """Counts the content that a field references.

        Raises:
          ApiError: 413, the body expands to more than there is room for.
        """
        self.num_items += num_items
        self.num_bytes += num_bytes
        if self.num_items > self._room.max_items or self.num_bytes > self._room.max_bytes:
            size = f"{self.num_items:,} items and {self.num_bytes:,} bytes"
            most = f"{self._room.max_items:,} items and {self._room.max_bytes:,} bytes"
            message = f"{param}: with it, the request expands to {size}, and may expand to {most}: name or send less"
            raise ApiError(kinds.REQUEST_TOO_LARGE, message, param=param)

    def _messages_of(
        self,
        param: str,
        item: ResponseItem,
        referred: Mapping[str, Any],
        found: Mapping[str, ConversationMessage],
    ) -> Sequence[ConversationMessage]:
        """Returns the messages of an item of the body."""
        if isinstance(item, ItemReference):
            if item.id not in found:
                raise missing("stored item", item.id, param)
            if self._referred[item.id].kind == "history":
                self._count(param, num_bytes=len(to_json(referred[item.id])))
            return [found[item.id]]
        if not isinstance(item, CompactionItem) or not item.is_own:
            return item.as_messages()
        try:
            unpacked = item.unpacked()
            self._count(param, len(unpacked) - 1)
            return own_messages(unpacked)
        except ValueError:
            message = f"{param}: encrypted_content is damaged: send it as /v1/responses/compact returned it"
            raise bad_value(param, message) from None


def _messages(part: StoredPart, texts: Sequence[bytes]) -> list[ConversationMessage]:
    if part.kind == "conversation":
        return own_messages(before_turn(_parsed(texts)))
    return [message for text in texts for message in unpack(text)]


def _referred_items(
    referred: Mapping[str, StoredPart], contents: Mapping[StoredPart, Sequence[bytes]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the items that references name, with their ids. Each response is unpacked once."""
    for part in {*referred.values()} & contents.keys():
        if part.kind == "item":
            items = _parsed(contents[part])
        else:
            items = items_with_ids(part.id, _messages(part, contents[part]), is_input=part.kind == "history")
        yield from ((item["id"], item) for item in items if item["id"] in referred)


def _parsed(texts: Sequence[bytes]) -> list[dict[str, Any]]:
    return stored_json(b"[" + b",".join(texts) + b"]")


def _parts_of(item_id: str) -> Sequence[StoredPart]:
    """Returns the parts that may have an item: itself, and the response whose id the item's id holds."""
    own, found = StoredPart("item", item_id), _ITEM_ID.fullmatch(item_id)
    return [own] if found is None else [own, StoredPart("history" if found[2] else "output", f"resp_{found[1]}")]


def _not_found(part: StoredPart, param: str) -> ApiError:
    if part.kind == "conversation":
        return missing("conversation", part.id, param)
    message = f"there is no stored response with the id {part.id[:100]!r}"
    return ApiError(kinds.NO_PREVIOUS_RESPONSE, message, param=param)


_MAX_NAMED: Final = 250
"""Maximum number of ids in a statement."""

_OF_RESPONSES: Final = "FROM roost_responses WHERE tenant = ? AND id IN {ids}"
_OF_CONVERSATIONS: Final = f"FROM roost_conversations WHERE tenant = ? AND id IN {{ids}} AND {CONVERSATIONS.visible}"
_OF_ITEMS: Final = f"""
    FROM roost_conversation_items AS found WHERE tenant = ? AND id IN {{ids}} AND EXISTS (
        SELECT 1 FROM roost_conversations
        WHERE roost_conversations.tenant = found.tenant AND roost_conversations.id = conversation
            AND {CONVERSATIONS.visible})
"""
_ALL_ITEMS: Final = "FROM roost_conversation_items WHERE tenant = ? AND conversation IN {ids} ORDER BY position"

_STATEMENTS: Final[Mapping[PartKind, tuple[re.Pattern[str], str, str]]] = {
    "history": (
        RESPONSE_ID,
        f"SELECT id, 0, length(history) {_OF_RESPONSES}",
        f"SELECT id, history {_OF_RESPONSES}",
    ),
    "output": (RESPONSE_ID, f"SELECT id, 0, length(output) {_OF_RESPONSES}", f"SELECT id, output {_OF_RESPONSES}"),
    "conversation": (
        CONVERSATION_ID,
        f"SELECT id, num_items, num_bytes {_OF_CONVERSATIONS}",
        f"SELECT conversation, text {_ALL_ITEMS}",
    ),
    "item": (ITEM_ID, f"SELECT id, 0, length(text) {_OF_ITEMS}", f"SELECT id, text {_OF_ITEMS}"),
}
"""Pattern of the ids of each kind of part, and the statements that find its sizes and its contents.

Other strings from clients never reach the database.
"""


def found_parts(
    transaction: Transaction, tenant: str, parts: Collection[StoredPart], *, are_sizes: bool
) -> Mapping[StoredPart, list[Any]]:
    """Returns the number of items and of bytes of those parts that exist, or their contents.

    The number of items is known of conversations only, and 0 for other parts. A conversation without items has no
    contents.
    """
    found = defaultdict[StoredPart, list[Any]](list)
    for kind, (pattern, sizes, contents) in _STATEMENTS.items():
        ids = (part.id for part in parts if part.kind == kind and pattern.fullmatch(part.id))
        for some in itertools.batched(ids, _MAX_NAMED):
            statement = (sizes if are_sizes else contents).format(ids=placeholders(1, len(some)))
            for name, *values in transaction.rows(statement, tenant, *some):
                found[StoredPart(kind, name)] += values
    return found
