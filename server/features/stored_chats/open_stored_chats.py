"""The stored chat completions of a running server, and the task that deletes old ones."""

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Final

from fastapi import Depends
from starlette.types import ASGIApp

from ...database.database import Database
from ...database.errors import StoreUnavailableError
from ...database.opening import open_database
from ...feature import OpenFeature, Opening, opened
from .chat_keeper import StoringChatKeeper
from .chat_store import ChatStore, DurableChats, MemoryChats
from .tables import TABLES

_PAUSE_S: Final = 60.0
"""Seconds between two looks for old completions."""

_logger: Final = logging.getLogger(__name__)


class OpenStoredChats(OpenFeature):
    """Stored chat completions of a server.

    Attributes:
      store: Store of the completions.

    Args:
      database: Database with the tables of completions; None keeps them in memory.
      retention_s: Age in seconds after which completions in a database are deleted.
    """

    def __init__(self, database: Database | None = None, retention_s: float = 0.0) -> None:
        self.database = database
        self.store: ChatStore = MemoryChats() if database is None else DurableChats(database, retention_s)
        self.chat_keeper = StoringChatKeeper(self.store)
        self._task: asyncio.Task[None] | None = None

    @property
    def is_stuck(self) -> bool:
        return self.database is not None and self.database.is_stuck

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        if isinstance(self.store, DurableChats):
            self._task = asyncio.create_task(_expire(self.store))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.database is not None:
            self.database.close()


async def _expire(store: DurableChats) -> None:
    """Deletes old completions periodically."""
    while True:
        try:
            await store.expire()
        except StoreUnavailableError as error:
            _logger.debug("%s", error)
        except Exception:
            _logger.exception("old chat completions were not deleted")
        await asyncio.sleep(_PAUSE_S)


def open_stored_chats(opening: Opening) -> OpenStoredChats:
    """Returns the feature of a server.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    settings = opening.settings
    if settings is None or settings.store_address.kind == "memory":
        return OpenStoredChats()
    return OpenStoredChats(open_database(settings.store_address, TABLES), settings.retention_s)


async def _store(chats: Annotated[OpenStoredChats, Depends(opened(OpenStoredChats))]) -> ChatStore:
    return chats.store


StoredChats = Annotated[ChatStore, Depends(_store)]
"""Store of chat completions for routes."""
