"""Stored conversations. Each tenant sees only its own."""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from ....database.pages import Page, PageSpec
from ....errors import kinds
from ....errors.request_errors import ApiError
from .records import MAX_ITEM_BYTES, MAX_ITEMS, ConversationRecord, Item, Outcome, Turn

CONVERSATION_ID: Final = re.compile("conv_[0-9a-f]{32}")
ITEM_ID: Final = re.compile("[a-z]+_[0-9a-f]{32}(_c[0-9]{1,9})?")
"""Pattern of valid ids. Other strings are not searched for."""


class ConversationStore(ABC):
    """Keeps conversations, in memory or in a database."""

    @abstractmethod
    async def create(self, record: ConversationRecord, items: Sequence[Item]) -> None:
        """Stores a new conversation and its first items."""

    @abstractmethod
    async def find(self, conversation_id: str) -> ConversationRecord | None:
        """Returns a conversation of the current tenant; None if it does not exist."""

    @abstractmethod
    async def set_metadata(self, conversation_id: str, metadata: bytes) -> ConversationRecord | None:
        """Replaces the metadata of a conversation, and returns it; None if it does not exist."""

    @abstractmethod
    async def remove(self, conversation_id: str) -> None:
        """Deletes a conversation and its items, if it exists."""

    @abstractmethod
    async def add(self, conversation_id: str, items: Sequence[Item]) -> Outcome:
        """Adds items to a conversation."""

    @abstractmethod
    async def page(self, conversation_id: str, spec: PageSpec) -> Page[Item] | None:
        """Returns a page of the items; None if the conversation has no item `spec.after`."""

    @abstractmethod
    async def item(self, conversation_id: str, item_id: str) -> Item | None:
        """Returns an item; None if it does not exist."""

    @abstractmethod
    async def remove_item(self, conversation_id: str, item_id: str) -> None:
        """Deletes an item, if it exists."""

    @abstractmethod
    async def take(self, conversation_id: str, response_id: str) -> Outcome:
        """Locks a conversation for a response until `release` or `end`."""

    @abstractmethod
    async def release(self, conversation_id: str, response_id: str) -> None:
        """Unlocks a conversation, unless the response continues in the background."""

    @abstractmethod
    async def end(self, turn: Turn) -> bool:
        """Adds the items of a turn and ends it; returns whether the response had the turn, or had nothing to add."""

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
