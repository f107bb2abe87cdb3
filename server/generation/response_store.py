"""Stored responses, which clients may fetch or continue. They are kept in memory, and each tenant sees its own only."""

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
from ..error_kinds import ErrorKind
from ..errors import ApiError
from ..tenancy.tenant import tenant
from ..tenancy.tenant_locks import TenantLocks
from .conversation import ConversationMessage
from .event_log import EventLog

type _Key = tuple[str, str]
"""Tenant and response id."""

MAX_RESPONSES: Final = 1000
MAX_BYTES: Final = 64 * 2**20

_OBJECT_BYTES: Final = 1024
"""Memory of an entry beside its JSON and its events: the objects, its id, and its places in dictionaries."""

_LOG_BYTES: Final = 2048
"""Memory of a log beside its events."""

_LONG: Final = 64 * 2**10
"""Bytes of JSON from which on a worker thread parses: it takes a millisecond or so."""

_ITEM_ID: Final = re.compile("(?:msg|fc)_([0-9a-f]{32})(?:_c[0-9]+)?")
_MESSAGES: Final = TypeAdapter(list[ConversationMessage])


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as JSON, which takes up to thirty times less memory than parsed objects.

    Attributes:
      response: Response as the client saw it.
      history: All messages before the response's own, packed; instructions are no part of them.
      output: List with the response's message, packed; empty while it is being generated.
      is_background: Whether the response was generated in the background, and may be cancelled.
      events: Log of its stream, if that may be followed again.
    """

    id: str
    response: bytes
    history: bytes
    output: bytes
    is_background: bool
    events: EventLog | None

    @property
    def num_bytes(self) -> int:
        """Memory of the response now. Messages of earlier responses count too, as those may be gone."""
        sizes = map(sys.getsizeof, (self.response, self.history, self.output))
        events = 0 if self.events is None else self.events.num_bytes + _LOG_BYTES
        return sum(sizes) + events + _OBJECT_BYTES

    def input_messages(self) -> list[ConversationMessage]:
        """Returns all messages before the response's own."""
        return _MESSAGES.validate_json(self.history)

    def conversation(self) -> list[ConversationMessage]:
        """Returns the messages that another response continues."""
        return [*self.input_messages(), *_MESSAGES.validate_json(self.output)]


class ResponseStore:
    """Keeps the newest responses. The oldest of the tenant that holds most are evicted for others."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._stored = TenantStore[_Key, StoredResponse](max_responses, max_bytes)
        self._locks = TenantLocks()

    @property
    def num_bytes(self) -> int:
        """Memory of all responses."""
        return self._stored.num_bytes

    def keep(
        self,
        response_id: str,
        response: bytes,
        history: bytes,
        events: EventLog | None = None,
        output: ConversationMessage | None = None,
        *,
        is_background: bool = False,
    ) -> None:
        """Stores a response, in place of an earlier state of the same response.

        Args:
          response: JSON of the response.
          history: Messages before the response's own, from `pack`.
          output: The response's own message, once it is whole.
        """
        packed = pack([] if output is None else [output])
        # Copied, since the JSON encoder's own buffer may be twelve times as large.
        stored = StoredResponse(response_id, bytes(memoryview(response)), history, packed, is_background, events)
        _shrink_logs(*self._stored.put(_key(stored.id), tenant.get(), stored, stored.num_bytes))

    def log(self, response_id: str, log: EventLog, event: bytes) -> None:
        """Appends an event to the log of a response. The log counts as long as the response is stored."""
        log.append(event)
        key = _key(response_id)
        stored = self._stored.get(key)
        if stored is not None and stored.events is log:
            _shrink_logs(*self._stored.resize(key, stored.num_bytes))

    def get(self, response_id: str) -> StoredResponse:
        """Returns a stored response.

        Raises:
          ApiError: 404, the response was never stored, is not finished yet, or was evicted.
        """
        stored = self._stored.get(_key(response_id))
        if stored is None:
            raise ApiError(ErrorKind.NO_SUCH_OBJECT, f"there is no stored response with the id {response_id!r}")
        return stored

    def previous(self, previous_response_id: str | None) -> StoredResponse | None:
        """Returns the response that another continues.

        Raises:
          ApiError: 400, there is no response of this id.
        """
        if previous_response_id is None:
            return None
        stored = self._stored.get(_key(previous_response_id))
        if stored is None:
            raise ApiError(
                ErrorKind.NO_PREVIOUS_RESPONSE,
                f"there is no stored response with the id {previous_response_id!r}",
                param="previous_response_id",
            )
        return stored

    @asynccontextmanager
    async def unpacked(self, previous: StoredResponse | None) -> AsyncGenerator[list[ConversationMessage]]:
        """Yields the messages of a stored response, or none without one, for as long as the `with` block needs them.

        A tenant has at most one long conversation unpacked at a time, since a small request may name one.
        """
        if previous is None:
            yield []
        elif len(previous.history) < _LONG:
            yield previous.conversation()
        else:
            async with self._locks.hold():
                yield await asyncio.to_thread(previous.conversation)

    async def items(self, item_ids: Sequence[str]) -> dict[str, ConversationMessage]:
        """Returns the messages of stored output items, by the items' ids.

        Raises:
          ApiError: The tenant has no stored response with one of the items.
        """
        if not item_ids:
            return {}
        holders = {item_id: self._holder(item_id) for item_id in item_ids}
        async with self._locks.hold():
            return await asyncio.to_thread(_messages_of, holders)

    def _holder(self, item_id: str) -> StoredResponse:
        """Returns the response of an output item, whose id holds the response's."""
        parts = _ITEM_ID.fullmatch(item_id)
        stored = None if parts is None else self._stored.get(_key(f"resp_{parts[1]}"))
        if stored is None:
            raise _no_item(item_id)
        return stored

    def delete(self, response_id: str) -> None:
        """Deletes a response.

        Raises:
          ApiError: There is no response of this id.
        """
        self.get(response_id)
        _shrink_logs(self._stored.pop(_key(response_id)))


def pack(messages: Sequence[ConversationMessage]) -> bytes:
    """Returns messages in the form in which they are stored."""
    return _MESSAGES.dump_json(list(messages), exclude_defaults=True)


def _messages_of(holders: Mapping[str, StoredResponse]) -> dict[str, ConversationMessage]:
    """Returns the messages of items by id. Each response is parsed once."""
    messages = {}
    for stored in {each.id: each for each in holders.values()}.values():
        output = {item["id"]: item for item in json.loads(stored.response)["output"]}
        own_messages = _MESSAGES.validate_json(stored.output)
        for item_id in (item_id for item_id, each in holders.items() if each is stored):
            if item_id not in output or not own_messages:
                raise _no_item(item_id)
            messages[item_id] = _message_of(output[item_id], own_messages[0])
    return messages


def _message_of(item: Mapping[str, Any], message: ConversationMessage) -> ConversationMessage:
    """Returns the part of a response's message that an output item holds."""
    if item["type"] == "message":
        return message
    return ConversationMessage("assistant", calls=tuple(call for call in message.calls if call.id == item["call_id"]))


def _no_item(item_id: str) -> ApiError:
    return ApiError(ErrorKind.NO_SUCH_OBJECT, f"there is no stored item with the id {item_id[:100]!r}", param="input")


def _shrink_logs(*gone: StoredResponse | None) -> None:
    """Shrinks the logs of responses that are gone, as no new client can follow them."""
    for stored in gone:
        if stored is not None and stored.events is not None:
            stored.events.shrink()


def _key(response_id: str) -> _Key:
    return tenant.get(), response_id
