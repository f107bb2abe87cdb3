"""Stores of chat completions, in memory and in a database. Each tenant sees only its own."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import batched
from typing import Final

from ....engine import TenantStore
from ...database.database import Database, Transaction
from ...database.expiry import Bounds, expired
from ...database.group_commit import GroupCommit
from ...database.pages import Page, PageSpec, slice_page
from ...tenancy.tenant import tenant
from . import chat_table
from .records import ChatFilter, StoredChat

MAX_IN_MEMORY: Final = 1000
MAX_MEMORY: Final = 64 * 2**20
"""Limits on the completions in memory."""

MAX_CHATS: Final = 10_000
MAX_BYTES: Final = 2**30
"""Limits on the completions that each tenant has in the database."""

_CHAT_BYTES: Final = 4096
"""Memory of a completion in addition to its JSON: the objects, its metadata, and its dictionary entries."""

_REPLY_S: Final = 5.0
"""Seconds after which a client gets an error while the database is unavailable."""

_MAX_DELETED: Final = 20
"""Number of completions that are deleted in one transaction."""

_CHAT_ID: Final = re.compile("chatcmpl-[0-9a-f]{32}")
"""Pattern of valid ids. Other strings are not searched for."""


class ChatStore(ABC):
    """Keeps chat completions."""

    @abstractmethod
    async def put(self, chat: StoredChat) -> None:
        """Stores a completion of the current tenant."""

    @abstractmethod
    async def find(self, chat_id: str) -> bytes | None:
        """Returns the JSON of a completion with its metadata; None if it does not exist."""

    @abstractmethod
    async def messages(self, chat_id: str) -> bytes | None:
        """Returns the JSON of the messages of a completion's request; None if the completion does not exist."""

    @abstractmethod
    async def set_metadata(self, chat_id: str, metadata: Mapping[str, str]) -> bytes | None:
        """Replaces the metadata of a completion, and returns its JSON; None if it does not exist."""

    @abstractmethod
    async def remove(self, chat_id: str) -> None:
        """Deletes a completion, if it exists."""

    @abstractmethod
    async def page(self, spec: PageSpec, only: ChatFilter) -> Page[tuple[str, bytes]] | None:
        """Returns ids and JSON of a page of completions; None if the list has no completion `spec.after`."""


class MemoryChats(ChatStore):
    """Keeps the newest completions, and evicts the oldest ones of the tenant that holds the most."""

    def __init__(self, max_chats: int = MAX_IN_MEMORY, max_bytes: int = MAX_MEMORY) -> None:
        self._stored = TenantStore[tuple[str, str], StoredChat](max_chats, max_bytes)

    async def put(self, chat: StoredChat) -> None:
        self._stored.put((tenant.get(), chat.id), tenant.get(), chat, chat.num_bytes + _CHAT_BYTES)

    async def find(self, chat_id: str) -> bytes | None:
        chat = self._stored.get((tenant.get(), chat_id))
        return None if chat is None else chat.described

    async def messages(self, chat_id: str) -> bytes | None:
        chat = self._stored.get((tenant.get(), chat_id))
        return None if chat is None else chat.messages

    async def set_metadata(self, chat_id: str, metadata: Mapping[str, str]) -> bytes | None:
        """Replaces the metadata. The completion keeps its place in lists."""
        key = tenant.get(), chat_id
        if (chat := self._stored.get(key)) is None:
            return None
        changed = replace(chat, metadata=metadata)
        self._stored.set_value(key, changed, changed.num_bytes + _CHAT_BYTES)
        return changed.described

    async def remove(self, chat_id: str) -> None:
        self._stored.pop((tenant.get(), chat_id))

    async def page(self, spec: PageSpec, only: ChatFilter) -> Page[tuple[str, bytes]] | None:
        chats = [chat for chat in self._stored.of(tenant.get()) if only.passes(chat)]
        found = slice_page(chats, spec, lambda chat: chat.id)
        return None if found is None else found.map(lambda chat: (chat.id, chat.described))


class DurableChats(ChatStore):
    """Keeps completions in a database that replicas share.

    Args:
      database: Database with the tables of completions.
      retention_s: Age in seconds after which completions are deleted.
    """

    def __init__(self, database: Database, retention_s: float) -> None:
        self._database = database
        self._commits = GroupCommit(database)
        self._retention_s = retention_s

    async def put(self, chat: StoredChat) -> None:
        await self._write(partial(chat_table.insert, tenant=tenant.get(), chat=chat))

    async def find(self, chat_id: str) -> bytes | None:
        return await self._read(chat_table.find, chat_id)

    async def messages(self, chat_id: str) -> bytes | None:
        return await self._read(chat_table.messages, chat_id)

    async def set_metadata(self, chat_id: str, metadata: Mapping[str, str]) -> bytes | None:
        if not _CHAT_ID.fullmatch(chat_id):
            return None
        own = tenant.get(), chat_id
        return await self._write(lambda each: chat_table.set_metadata(each, *own, metadata))

    async def remove(self, chat_id: str) -> None:
        own = tenant.get(), chat_id
        await self._write(lambda each: chat_table.delete_all(each, [own]))

    async def page(self, spec: PageSpec, only: ChatFilter) -> Page[tuple[str, bytes]] | None:
        if spec.after is not None and not _CHAT_ID.fullmatch(spec.after):
            return None
        read = partial(chat_table.read_list, tenant=tenant.get(), spec=spec, only=only)
        return await self._database.run(read, timeout_s=_REPLY_S)

    async def expire(self) -> None:
        """Deletes completions beyond the limits."""
        bounds = Bounds(self._retention_s, MAX_CHATS, MAX_BYTES)
        found = await self._database.run(lambda each: expired(each, chat_table.ROWS, bounds))
        for names in batched(found, _MAX_DELETED):
            await self._write(partial(chat_table.delete_all, names=names))

    async def _read[T](self, read: Callable[[Transaction, str, str], T], chat_id: str) -> T | None:
        if not _CHAT_ID.fullmatch(chat_id):
            return None
        owner = tenant.get()
        return await self._database.run(lambda each: read(each, owner, chat_id), timeout_s=_REPLY_S)

    async def _write[T](self, write: Callable[[Transaction], T]) -> T:
        return await self._commits.write(write, _REPLY_S)
