"""Conversations in a database that replicas share."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from ....database.database import Database, Transaction
from ....database.errors import StoreUnavailableError
from ....database.group_commit import GroupCommit
from ....database.pages import Page, PageSpec
from ....tenancy.tenant import tenant
from ..appends import Addition
from . import conversation_table
from .records import ConversationRecord, Item, Outcome, Turn, load_of
from .store import CONVERSATION_ID, ITEM_ID, ConversationStore

_REPLY_S: Final = 5.0
"""Seconds after which a client gets an error while the database is unavailable."""


class DurableConversations(ConversationStore):
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
        insert = partial(conversation_table.insert, tenant=tenant.get(), record=record, items=items)
        await self._add(insert, items)

    async def find(self, conversation_id: str) -> ConversationRecord | None:
        return await self._read(conversation_table.find, conversation_id)

    async def set_metadata(self, conversation_id: str, metadata: bytes) -> ConversationRecord | None:
        if not CONVERSATION_ID.fullmatch(conversation_id):
            return None
        own = tenant.get(), conversation_id
        return await self._write(lambda each: conversation_table.set_metadata(each, *own, metadata))

    async def remove(self, conversation_id: str) -> None:
        own = tenant.get(), conversation_id
        await self._write(lambda each: conversation_table.hide(each, *own))

    async def add(self, conversation_id: str, items: Sequence[Item]) -> Outcome:
        if not CONVERSATION_ID.fullmatch(conversation_id):
            return Outcome.MISSING
        own = tenant.get(), conversation_id
        return await self._add(lambda each: conversation_table.add(each, *own, items), items)

    async def page(self, conversation_id: str, spec: PageSpec) -> Page[Item] | None:
        if spec.after is not None and not ITEM_ID.fullmatch(spec.after):
            return None
        return await self._read(partial(conversation_table.read_list, spec=spec), conversation_id)

    async def item(self, conversation_id: str, item_id: str) -> Item | None:
        if not ITEM_ID.fullmatch(item_id):
            return None
        return await self._read(partial(conversation_table.item, item_id=item_id), conversation_id)

    async def remove_item(self, conversation_id: str, item_id: str) -> None:
        own = tenant.get(), conversation_id
        await self._write(lambda each: conversation_table.delete_item(each, *own, item_id))

    async def take(self, conversation_id: str, response_id: str) -> Outcome:
        if not CONVERSATION_ID.fullmatch(conversation_id):
            return Outcome.MISSING
        held = tenant.get(), conversation_id, response_id
        outcome = await self._write(lambda each: conversation_table.take(each, *held))
        if outcome is Outcome.DONE:
            self._held.add(held)
        return outcome

    async def release(self, conversation_id: str, response_id: str) -> None:
        """Ends the lease of a response that has not ended its turn. It expires if the database is unavailable."""
        held = tenant.get(), conversation_id, response_id
        if held in self._held:
            self._held.discard(held)
            with suppress(StoreUnavailableError):
                await self._write(lambda each: conversation_table.release(each, *held))

    async def end(self, turn: Turn) -> bool:
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

    async def _read[T](self, read: Callable[[Transaction, str, str], T], conversation_id: str) -> T | None:
        if not CONVERSATION_ID.fullmatch(conversation_id):
            return None
        owner = tenant.get()
        return await self._database.run(lambda each: read(each, owner, conversation_id), timeout_s=_REPLY_S)

    async def _write[T](self, write: Callable[[Transaction], T]) -> T:
        return await self._commits.write(write, _REPLY_S)

    async def _add[T](self, write: Callable[[Transaction], T], items: Sequence[Item]) -> T:
        return await self._commits.write(Addition(tenant.get(), write), _REPLY_S, load_of(items))
