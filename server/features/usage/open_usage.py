"""The usage of a running server's tenants, and the task that stores it."""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from starlette.types import ASGIApp

from ...database.database import Database
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...feature import OpenFeature, Opening, opened
from .usage_counter import UsageCounter
from .usage_table import TABLES


class OpenUsage(OpenFeature):
    """Usage of a server's tenants. It is counted only with a database.

    Args:
      database: Database with the tables of usage.
    """

    def __init__(self, database: Database | None = None) -> None:
        self.database = database
        self._counter = None if database is None else UsageCounter(database)
        self.observers = () if self._counter is None else (self._counter,)
        self._task: asyncio.Task[None] | None = None

    @property
    def is_stuck(self) -> bool:
        return self.database is not None and self.database.is_stuck

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        if self._counter is not None:
            self._task = asyncio.create_task(self._counter.run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._counter is not None and self.database is not None:
            await self._counter.close()
            self.database.close()


def open_usage(opening: Opening) -> OpenUsage:
    """Returns the feature of a server.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    if opening.address.kind == "memory":
        return OpenUsage()
    return OpenUsage(opening.open_database(TABLES))


async def _database(usage: Annotated[OpenUsage, Depends(opened(OpenUsage))]) -> Database:
    if usage.database is None:
        raise ApiError(kinds.NO_SUCH_URL, "usage needs a database: start the server with --store")
    return usage.database


UsageDatabase = Annotated[Database, Depends(_database)]
"""Database of usage for routes; 404 on a server without one."""
