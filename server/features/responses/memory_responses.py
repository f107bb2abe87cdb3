"""Responses in memory: the newest ones, until the process exits."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ....engine import TenantStore
from ...generation.delta import Delta
from ...tenancy.tenant import tenant
from ...text.conversation import ConversationMessage
from .conversations.memory_conversations import MemoryConversations
from .conversations.records import Item, Turn
from .conversations.store import locked
from .event_log import EventLog
from .records import Job
from .response_store import ResponseLog, ResponseStore, StoredPart, StoredResponse, pack

type _Key = tuple[str, str]
"""Tenant and response id."""

MAX_RESPONSES: Final = 1000
MAX_BYTES: Final = 64 * 2**20

_OBJECT_BYTES: Final = 1024
"""Memory of an entry in addition to its JSON and its events: the objects, its id, and its dictionary entries."""

_LOG_BYTES: Final = 2048
"""Memory of a log in addition to its events."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A response, and the log of its stream if clients may follow it again."""

    stored: StoredResponse
    events: EventLog | None = None

    @property
    def num_bytes(self) -> int:
        """Current memory of the response. Messages of earlier responses count, since those responses may be gone."""
        sizes = map(sys.getsizeof, (self.stored.response, self.stored.history, self.stored.output))
        events = 0 if self.events is None else self.events.num_bytes + _LOG_BYTES
        return sum(sizes) + events + _OBJECT_BYTES


class MemoryResponses(ResponseStore):
    """Keeps the newest responses, and evicts the oldest ones of the tenant that holds the most."""

    conversations: MemoryConversations

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        super().__init__(MemoryConversations())
        self._stored = TenantStore[_Key, _Entry](max_responses, max_bytes)

    @property
    def num_bytes(self) -> int:
        """Memory of all responses."""
        return self._stored.num_bytes

    async def check(self) -> None:
        """Does nothing: memory is always there."""

    async def keep(
        self, response_id: str, response: bytes, history: bytes, output: ConversationMessage, turn: Turn | None = None
    ) -> bytes:
        if turn is not None and not await self.conversations.end(turn):
            raise locked(turn.conversation, "conversation")
        stored = await self.find(response_id)
        if stored is None:
            stored = StoredResponse(response_id, _copied(response), history, pack([output]))
            self.put(stored)
        return stored.response

    async def open(self, pending: StoredResponse, job: Job, events: Sequence[bytes]) -> ResponseLog:
        event_log = EventLog() if pending.is_streamed else None
        self.put(pending, event_log)
        log = _MemoryLog(self, pending, event_log)
        await log.append(events)
        return log

    async def find(self, response_id: str) -> StoredResponse | None:
        entry = self._stored.get(_key(response_id))
        return None if entry is None else entry.stored

    async def sizes(self, parts: Collection[StoredPart]) -> Mapping[StoredPart, tuple[int, int]]:
        return {
            part: (len(texts) if part.kind == "conversation" else 0, sum(map(len, texts)))
            for part, texts in self._contents(parts).items()
        }

    async def contents(self, parts: Collection[StoredPart]) -> Mapping[StoredPart, Sequence[bytes]]:
        return self._contents(parts)

    def _contents(self, parts: Collection[StoredPart]) -> Mapping[StoredPart, Sequence[bytes]]:
        found = {part: texts for part in parts if (texts := self._texts(part)) is not None}
        items = self.conversations.items({part.id for part in parts if part.kind == "item"})
        return found | {StoredPart("item", item.id): [item.text] for item in items}

    def _texts(self, part: StoredPart) -> Sequence[bytes] | None:
        if part.kind == "item":
            return None
        if part.kind == "conversation":
            return self.conversations.texts(part.id)
        entry = self._stored.get(_key(part.id))
        if entry is None:
            return None
        return [entry.stored.history if part.kind == "history" else entry.stored.output]

    async def seize(self, response_id: str) -> None:
        """Returns None: responses in memory have no other replicas."""

    async def remove(self, response_id: str) -> None:
        _shrink_logs(self._stored.pop(_key(response_id)))

    async def follow(self, stored: StoredResponse, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        entry = self._stored.get(_key(stored.id))
        assert entry is not None
        assert entry.events is not None
        entry.events.check(number)
        return entry.events.follow(number, pause_s)

    def put(self, stored: StoredResponse, events: EventLog | None = None) -> None:
        """Stores a response, and replaces an earlier version of the same response."""
        entry = _Entry(stored, events)
        _shrink_logs(*self._stored.put(_key(stored.id), tenant.get(), entry, entry.num_bytes))

    def log(self, response_id: str, log: EventLog, event: bytes) -> None:
        """Appends an event to the log of a response. The log counts as long as the response is stored."""
        log.append(event)
        key = _key(response_id)
        entry = self._stored.get(key)
        if entry is not None and entry.events is log:
            _shrink_logs(*self._stored.resize(key, entry.num_bytes))


class _MemoryLog(ResponseLog):
    """Log of a response in memory, which is kept only if the response is streamed."""

    def __init__(self, store: MemoryResponses, pending: StoredResponse, events: EventLog | None) -> None:
        self._store = store
        self._pending = pending
        self._events = events
        self.is_streamed = events is not None

    def hold(self, task: asyncio.Task[Any]) -> None:
        """Keeps the response's turn in its conversation, if it has one. Other replicas cannot adopt it."""
        if self._pending.turn is not None:
            self._store.conversations.hold(self._pending.turn, task)

    async def append(self, events: Sequence[bytes], delta: Delta | None = None) -> None:
        if self._events is not None:
            for event in events:
                self._store.log(self._pending.id, self._events, event)

    async def end(
        self,
        events: Sequence[bytes],
        response: bytes,
        output: ConversationMessage,
        status: str,
        items: Sequence[Item] = (),
    ) -> None:
        pending = self._pending
        if pending.turn is not None:
            await self._store.conversations.end(pending.turn.ended(items))
        ended = StoredResponse(
            pending.id, _copied(response), pending.history, pack([output]), True, pending.is_streamed
        )
        self._store.put(ended, self._events)
        await self.append(events)
        if self._events is not None:
            self._events.close()

    async def is_continued(self) -> bool:
        return False

    async def release(self, *, is_death: bool = False) -> bool:
        return False


def _copied(response: bytes) -> bytes:
    """Returns a copy of the bytes, since the JSON encoder's buffer may be twelve times as large."""
    return bytes(memoryview(response))


def _shrink_logs(*gone: _Entry | None) -> None:
    """Shrinks the logs of responses that are gone, since new clients cannot follow them."""
    for entry in gone:
        if entry is not None and entry.events is not None:
            entry.events.shrink()


def _key(response_id: str) -> _Key:
    return tenant.get(), response_id
