"""Stored responses, which clients may fetch or continue. Each tenant sees its own only."""

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter

from ...errors import kinds
from ...errors.request_errors import ApiError
from ...generation.delta import Delta
from ...tenancy.tenant_locks import TenantLocks
from ...text.conversation import ConversationMessage
from .records import Job

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
      is_streamed: Whether its events may be followed again.
    """

    id: str
    response: bytes
    history: bytes
    output: bytes
    is_background: bool = False
    is_streamed: bool = False

    def input_messages(self) -> list[ConversationMessage]:
        """Returns all messages before the response's own."""
        return _MESSAGES.validate_json(self.history)

    def conversation(self) -> list[ConversationMessage]:
        """Returns the messages that another response continues."""
        return [*self.input_messages(), *_MESSAGES.validate_json(self.output)]


class ResponseLog(ABC):
    """Log of a background response that this replica generates.

    Attributes:
      is_streamed: Whether clients may follow its events.
    """

    is_streamed: bool

    @abstractmethod
    def hold(self, task: asyncio.Task[Any]) -> None:
        """Keeps other replicas from the response until a task has ended, whatever ends it. Nothing else keeps them."""

    @abstractmethod
    async def append(self, events: Sequence[bytes], delta: Delta | None = None) -> None:
        """Appends events, and the delta that they were built from. When this returns, they may be sent.

        Raises:
          FencedError: The response was adopted, ended or deleted by another replica.
          StoreUnavailableError: The store was away for too long.
        """

    @abstractmethod
    async def end(self, events: Sequence[bytes], response: bytes, output: ConversationMessage, status: str) -> None:
        """Appends the last events, and stores the final response and its message.

        Args:
          status: Status of the response.

        Raises:
          FencedError, StoreUnavailableError: See `append`.
        """

    @abstractmethod
    async def release(self) -> bool:
        """Leaves the response to other replicas. Returns whether there may be any."""


class ResponseStore(ABC):
    """Keeps responses, in memory or in a database."""

    def __init__(self) -> None:
        self._locks = TenantLocks()

    @abstractmethod
    async def keep(self, response_id: str, response: bytes, history: bytes, output: ConversationMessage) -> None:
        """Stores a response that has ended.

        Args:
          response: JSON of the response.
          history: Messages before the response's own, from `pack`.
          output: The response's own message.
        """

    @abstractmethod
    async def open(self, pending: StoredResponse, job: Job) -> ResponseLog:
        """Stores a background response before its first token.

        Args:
          pending: The response without output.
          job: All that another replica needs to generate it.
        """

    @abstractmethod
    async def find(self, response_id: str) -> StoredResponse | None:
        """Returns a response of the current tenant; None if there is none."""

    @abstractmethod
    async def seize(self, response_id: str) -> tuple[ResponseLog, int] | None:
        """Takes a running response from another replica, in order to end it within the current task.

        Returns:
          The response's log and the number of its next event, or None if no other replica can run it.
        """

    @abstractmethod
    async def remove(self, response_id: str) -> None:
        """Deletes a response, if there is one."""

    @abstractmethod
    def follow(self, stored: StoredResponse, number: int, pause_s: float) -> AsyncGenerator[bytes | None]:
        """Returns the event of this number and all later ones, and None whenever the next takes longer than `pause_s`.

        Raises:
          ApiError: The event is not kept any more.
        """

    async def get(self, response_id: str) -> StoredResponse:
        """Returns a stored response.

        Raises:
          ApiError: 404, the response was never stored, is not finished yet, or was evicted.
        """
        stored = await self.find(response_id)
        if stored is None:
            raise ApiError(kinds.NO_SUCH_OBJECT, f"there is no stored response with the id {response_id!r}")
        return stored

    async def previous(self, previous_response_id: str | None) -> StoredResponse | None:
        """Returns the response that another continues.

        Raises:
          ApiError: 400, there is no response of this id.
        """
        if previous_response_id is None:
            return None
        stored = await self.find(previous_response_id)
        if stored is None:
            raise ApiError(
                kinds.NO_PREVIOUS_RESPONSE,
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
        async with self._locks.hold():
            holders = await self._holders(item_ids)
            return await asyncio.to_thread(_messages_of, holders)

    async def _holders(self, item_ids: Sequence[str]) -> dict[str, StoredResponse]:
        """Returns the response of each output item, whose id holds the response's. Each response is read once."""
        read: dict[str, StoredResponse] = {}
        holders = {}
        for item_id in item_ids:
            parts = _ITEM_ID.fullmatch(item_id)
            response_id = "" if parts is None else f"resp_{parts[1]}"
            stored = read.get(response_id) or await self.find(response_id)
            if stored is None:
                raise _no_item(item_id)
            holders[item_id] = read[response_id] = stored
        return holders

    async def delete(self, response_id: str) -> None:
        """Deletes a response.

        Raises:
          ApiError: There is no response of this id.
        """
        await self.get(response_id)
        await self.remove(response_id)


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
    return ApiError(kinds.NO_SUCH_OBJECT, f"there is no stored item with the id {item_id[:100]!r}", param="input")
