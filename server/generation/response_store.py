"""Responses that clients may ask for again, or go on from. They are kept in memory, so a restart forgets them.

Each tenant knows of its own only, by `tenant`."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter

from ...engine import TenantStore
from ..api.common.sse import to_json
from ..api.openai.schemas import ChatMessage
from ..errors import ApiError
from ..tenancy.tenant import tenant
from ..tenancy.tenant_locks import TenantLocks
from .event_log import EventLog

type _Key = tuple[str, str]
"""Whose it is, and its id."""

MAX_RESPONSES: Final = 1000
MAX_BYTES: Final = 64 * 2**20

_OBJECT_BYTES: Final = 1024
"""What an entry takes beside its JSON and its events: the objects, its id, and its places in dictionaries."""

_LOG_BYTES: Final = 2048
"""What a log takes beside its events."""

_LONG: Final = 64 * 2**10
"""Bytes of JSON that take a millisecond or so to parse: from here on the event loop is spared."""

_ITEM_ID: Final = re.compile("(?:msg|fc)_([0-9a-f]{32})(?:_c[0-9]+)?")
_MESSAGES: Final = TypeAdapter(list[ChatMessage])


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as JSON: parsed, it would take up to thirty times as much.

    Attributes:
      response: as the client saw it.
      asked: all messages up to its answer; instructions are no part of it.
      answer: the answer, in a list; empty while it is being made.
      is_background: whether it was made in the background, and may be cancelled.
      events: of its stream, if that may be followed again.
    """

    id: str
    response: bytes
    asked: bytes
    answer: bytes
    is_background: bool
    events: EventLog | None

    @property
    def num_bytes(self) -> int:
        """Memory that keeping it takes now. Messages of earlier responses are counted too, as they may be gone."""
        sizes = map(sys.getsizeof, (self.response, self.asked, self.answer))
        events = 0 if self.events is None else self.events.num_bytes + _LOG_BYTES
        return sum(sizes) + events + _OBJECT_BYTES

    def asked_messages(self) -> list[ChatMessage]:
        """All messages up to its answer."""
        return _MESSAGES.validate_json(self.asked)

    def conversation(self) -> list[ChatMessage]:
        """What another response goes on from."""
        return [*self.asked_messages(), *_MESSAGES.validate_json(self.answer)]


class ResponseStore:
    """The newest responses. The oldest of the tenant that holds most make room for others."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._stored: TenantStore[_Key, StoredResponse] = TenantStore()
        self._locks = TenantLocks()

    @property
    def num_bytes(self) -> int:
        """Memory that all responses take."""
        return self._stored.num_bytes

    def keep(
        self,
        response: Mapping[str, Any],
        asked: bytes,
        events: EventLog | None = None,
        answer: ChatMessage | None = None,
    ) -> None:
        """Stores a response, in place of an earlier state of the same.

        Args:
          asked: See `pack`.
        """
        stored = StoredResponse(
            response["id"],
            bytes(memoryview(to_json(response))),  # a copy: the encoder's own buffer may be twelve times as large
            asked,
            pack([] if answer is None else [answer]),
            bool(response["background"]),
            events,
        )
        self._stored.put(_key(stored.id), tenant.get(), stored, stored.num_bytes)
        self._make_room()

    def log(self, response_id: str, log: EventLog, event: bytes) -> None:
        """Appends an event to the log of a response, which counts as long as the response is stored."""
        log.append(event)
        key = _key(response_id)
        stored = self._stored.get(key)
        if stored is not None and stored.events is log:
            self._stored.resize(key, stored.num_bytes)
            self._make_room()

    def get(self, response_id: str) -> StoredResponse:
        """
        Raises:
          ApiError: it was never stored, is not finished yet, or has made room for others.
        """
        stored = self._stored.get(_key(response_id))
        if stored is None:
            raise ApiError(404, f"there is no stored response with the id {response_id!r}")
        return stored

    def previous(self, previous_response_id: str | None) -> StoredResponse | None:
        """The response that another goes on from.

        Raises:
          ApiError: the previous response is not there.
        """
        if previous_response_id is None:
            return None
        stored = self._stored.get(_key(previous_response_id))
        if stored is None:
            raise ApiError(
                400,
                f"there is no stored response with the id {previous_response_id!r}",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return stored

    @asynccontextmanager
    async def unpacked(self, previous: StoredResponse | None) -> AsyncGenerator[list[ChatMessage]]:
        """The messages of a stored response, for as long as the `with` block needs them; none without a response.

        A small request may name a long conversation. So a tenant has at most one such unpacked at a time.
        """
        if previous is None:
            yield []
        elif len(previous.asked) < _LONG:
            yield previous.conversation()
        else:
            async with self._locks.hold():
                yield await asyncio.to_thread(previous.conversation)

    async def items(self, item_ids: Sequence[str]) -> dict[str, ChatMessage]:
        """The messages that items of stored outputs stand for, by the items' ids.

        Raises:
          ApiError: the tenant has no stored response with one of the items.
        """
        if not item_ids:
            return {}
        holders = {item_id: self._holder(item_id) for item_id in item_ids}
        async with self._locks.hold():
            return await asyncio.to_thread(_messages_of, holders)

    def _holder(self, item_id: str) -> StoredResponse:
        """An output item's id holds that of its response."""
        parts = _ITEM_ID.fullmatch(item_id)
        stored = None if parts is None else self._stored.get(_key(f"resp_{parts[1]}"))
        if stored is None:
            raise _no_item(item_id)
        return stored

    def delete(self, response_id: str) -> None:
        """
        Raises:
          ApiError: it is not there.
        """
        self.get(response_id)
        stored = self._stored.pop(_key(response_id))
        _forget(stored)

    def _make_room(self) -> None:
        for stored in self._stored.make_room(self._max_responses, self._max_bytes):
            _forget(stored)


def pack(messages: Sequence[ChatMessage]) -> bytes:
    """Messages as they are stored."""
    return _MESSAGES.dump_json(list(messages), exclude_none=True, serialize_as_any=True)  # a part is what it is


def _messages_of(holders: Mapping[str, StoredResponse]) -> dict[str, ChatMessage]:
    """Each response is read once, however many of its items are asked for."""
    messages = {}
    for stored in {each.id: each for each in holders.values()}.values():
        output = {item["id"]: item for item in json.loads(stored.response)["output"]}
        answers = _MESSAGES.validate_json(stored.answer)
        for item_id in (item_id for item_id, each in holders.items() if each is stored):
            if item_id not in output or not answers:
                raise _no_item(item_id)
            messages[item_id] = _message_of(output[item_id], answers[0])
    return messages


def _message_of(item: Mapping[str, Any], answer: ChatMessage) -> ChatMessage:
    if item["type"] == "message":
        return answer
    calls = [call for call in answer.tool_calls or () if call.id == item["call_id"]]
    return ChatMessage(role="assistant", tool_calls=calls)


def _no_item(item_id: str) -> ApiError:
    return ApiError(404, f"there is no stored item with the id {item_id[:100]!r}", param="input")


def _forget(stored: StoredResponse | None) -> None:
    """Nobody can ask for the events of a response that is gone."""
    if stored is not None and stored.events is not None:
        stored.events.shrink()


def _key(response_id: str) -> _Key:
    return tenant.get(), response_id
