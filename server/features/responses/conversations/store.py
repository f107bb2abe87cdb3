"""Stored conversations. Each tenant sees only its own."""

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

from ....database.database import Database, Transaction
from ....database.errors import StoreUnavailableError
from ....database.group_commit import GroupCommit
from ....errors import kinds
from ....errors.request_errors import ApiError
from ....storage.objects import Page, PageSpec
from ....tenancy.tenant import tenant
from ..appends import Addition
from . import conversation_table
from .conversation_table import CONVERSATIONS
from .records import MAX_ITEM_BYTES, MAX_ITEMS, ConversationRecord, Item, Outcome, Turn, load_of

CONVERSATION_ID: Final = re.compile("conv_[0-9a-f]{32}")
ITEM_ID: Final = re.compile("[a-z]+_[0-9a-f]{32}(_c[0-9]{1,9})?")
"""Pattern of valid ids. Other strings are not searched for."""

_REPLY_S: Final = 5.0
"""Seconds after which a client gets an error while the database is unavailable."""


class ConversationStore:
    """Keeps conversations in the database of the responses.

    Args:
      commits: Commits writes of clients, and of responses that have ended.
      leases: Commits extensions of leases.
    """

    def __init__(self, database: Database, commits: GroupCommit, leases: GroupCommit) -> None:
        self._database = database
        self._commits = commits
        self._leases = leases
        self._held: set[tuple[str, str, str]] = set()

    async def create(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        """Stores a new conversation and its first items."""
        await self._add(partial(conversation_table.insert, record=record, items=items), items)

    async def find(self, conversation_id: str) -> ConversationRecord | None:
        """Returns a conversation of the current tenant; None if it does not exist."""
        return await self._read(CONVERSATIONS.find, conversation_id)

    async def set_metadata(self, conversation_id: str, metadata: bytes) -> ConversationRecord | None:
        """Replaces the metadata of a conversation, and returns it; None if it does not exist."""
        if not CONVERSATION_ID.fullmatch(conversation_id):
            return None
        own = tenant.get(), conversation_id
        return await self._write(lambda each: conversation_table.set_metadata(each, *own, metadata))

    async def remove(self, conversation_id: str) -> None:
        """Deletes a conversation and its items, if it exists."""
        own = tenant.get(), conversation_id
        await self._write(lambda each: conversation_table.hide(each, *own))

    async def add(self, conversation_id: str, items: Sequence[Item]) -> Outcome:
        """Adds items to a conversation."""
        if not CONVERSATION_ID.fullmatch(conversation_id):
            return Outcome.MISSING
        own = tenant.get(), conversation_id
        return await self._add(lambda each: conversation_table.add(each, *own, items), items)

    async def page(self, conversation_id: str, spec: PageSpec) -> Page[Item] | None:
        """Returns a page of the items; None if the conversation has no item `spec.after`."""
        if spec.after is not None and not ITEM_ID.fullmatch(spec.after):
            return None
        return await self._read(partial(conversation_table.read_list, spec=spec), conversation_id)

    async def item(self, conversation_id: str, item_id: str) -> Item | None:
        """Returns an item; None if it does not exist."""
        if not ITEM_ID.fullmatch(item_id):
            return None
        return await self._read(partial(conversation_table.item, item_id=item_id), conversation_id)

    async def remove_item(self, conversation_id: str, item_id: str) -> None:
        """Deletes an item, if it exists."""
        own = tenant.get(), conversation_id
        await self._write(lambda each: conversation_table.delete_item(each, *own, item_id))

    async def take(self, conversation_id: str, response_id: str) -> Outcome:
        """Locks a conversation for a response until `release` or `end`."""
        if not CONVERSATION_ID.fullmatch(conversation_id):
            return Outcome.MISSING
        held = tenant.get(), conversation_id, response_id
        outcome = await self._write(lambda each: conversation_table.take(each, *held))
        if outcome is Outcome.DONE:
            self._held.add(held)
        return outcome

    async def release(self, conversation_id: str, response_id: str) -> None:
        """Unlocks a conversation, unless the response continues in the background or has ended its turn.

        The lock expires if the database is unavailable.
        """
        held = tenant.get(), conversation_id, response_id
        if held in self._held:
            self._held.discard(held)
            with suppress(StoreUnavailableError):
                await self._write(lambda each: conversation_table.release(each, *held))

    async def end(self, turn: Turn) -> bool:
        """Adds the items of a turn and ends it; returns whether the response had the turn, or had nothing to add."""
        return await self._add(self.ending(turn), turn.items)

    def ending(self, turn: Turn) -> Callable[[Transaction], bool]:
        """Returns the write that ends a turn of the current tenant. This replica no longer extends its lease."""
        owner = tenant.get()
        self._held.discard((owner, turn.conversation, turn.response))
        return partial(conversation_table.end, tenant=owner, turn=turn)

    async def renew(self) -> None:
        """Extends the leases of this replica's responses."""
        if self._held:
            turns = list(self._held)
            await self._leases.write(lambda each: conversation_table.renew(each, turns), _REPLY_S)

    async def get(self, conversation_id: str) -> ConversationRecord:
        """Returns a conversation.

        Raises:
          ApiError: 404, the conversation does not exist.
        """
        if (found := await self.find(conversation_id)) is None:
            raise no_conversation(conversation_id)
        return found

    @asynccontextmanager
    async def locked(self, conversation_id: str | None, response_id: str) -> AsyncGenerator[None]:
        """Locks a conversation for a response until the end of the `with` block, or until the end of a background
        response.

        Args:
          conversation_id: Id of the conversation; None locks nothing.

        Raises:
          ApiError: The conversation does not exist, or is locked or full.
        """
        if conversation_id is None:
            yield
            return
        check(await self.take(conversation_id, response_id), conversation_id, "conversation")
        try:
            yield
        finally:
            await self.release(conversation_id, response_id)

    async def _read[T](self, read: Callable[[Transaction, str, str], T], conversation_id: str) -> T | None:
        if not CONVERSATION_ID.fullmatch(conversation_id):
            return None
        owner = tenant.get()
        return await self._database.run(lambda each: read(each, owner, conversation_id), timeout_s=_REPLY_S)

    async def _write[T](self, write: Callable[[Transaction], T]) -> T:
        return await self._commits.write(write, _REPLY_S)

    async def _add[T](self, write: Callable[[Transaction], T], items: Sequence[Item]) -> T:
        return await self._commits.write(Addition(tenant.get(), write), _REPLY_S, load_of(items))


def check(outcome: Outcome, conversation_id: str, param: str | None = None) -> None:
    """Checks that a conversation was changed.

    Raises:
      ApiError: It was not.
    """
    if outcome is Outcome.MISSING:
        raise no_conversation(conversation_id, param)
    if outcome is Outcome.LOCKED:
        raise locked(conversation_id, param)
    if outcome is Outcome.FULL:
        size = f"{MAX_ITEMS:,} items or {MAX_ITEM_BYTES // 2**20} MiB"
        raise ApiError(
            kinds.QUOTA_EXCEEDED, f"{conversation_id} has {size}, which is the limit: create another", param=param
        )


def no_conversation(conversation_id: str, param: str | None = None) -> ApiError:
    """Returns a 404 for a conversation."""
    message = f"there is no conversation with the id {conversation_id[:100]!r}"
    return ApiError(kinds.NO_SUCH_OBJECT, message, param=param)


def locked(conversation_id: str, param: str | None = None) -> ApiError:
    """Returns the error about a conversation that another response is going to add to."""
    message = f"another response is running in {conversation_id}: wait for its end, or cancel it"
    return ApiError(kinds.CONVERSATION_LOCKED, message, param=param)
