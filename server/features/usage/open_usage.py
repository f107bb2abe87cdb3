"""Counts the usage of a running server's tenants, and adds it to the database every few seconds."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Final
from uuid import uuid4

from fastapi import Depends
from starlette.types import ASGIApp

from ...database.database import Database, Lane
from ...database.errors import StoreUnavailableError
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...feature import OpenFeature, Opening, opened
from ...observability.request_metrics import Observer, RequestRecord
from . import usage_table
from .usage_table import TABLES, Key, TenantUsage, UsageAddition, today

INTERVAL_S: Final = 5.0
"""Seconds between two additions to the database. If the process is killed, counts since the last addition are lost."""

KEEP_DAYS: Final = 400
"""Days after which usage is deleted."""

_REPLICA_DAYS: Final = 7
"""Days after which an inactive replica is forgotten. An addition is not repeated for that long."""

_LAST_S: Final = 1.0
"""Seconds for the last addition of a replica that is shutting down."""

_logger: Final = logging.getLogger(__name__)


class UsageCounter(Observer):
    """Counts requests that have ended here.

    Args:
      database: Database with the tables of usage.
      today: Returns the present UTC day, or an earlier one.
    """

    def __init__(self, database: Database, today: Callable[[int], str] = today) -> None:
        database.probe = usage_table.probe
        self._database = database
        self._today = today
        self._replica = uuid4().hex
        self._counts: dict[Key, TenantUsage] = {}
        self._adding: dict[Key, TenantUsage] = {}
        self._number = 0

    def on_settle(self, record: RequestRecord) -> None:
        """Counts a request that had a slot, unless its output was discarded or another replica runs the rest."""
        if record.started is None or record.is_left:
            return
        key = self._today(0), record.request.tenant
        self._counts[key] = self._counts.get(key, TenantUsage()).plus(_usage(record))

    async def run(self) -> None:
        """Adds counts to the database periodically, until it is cancelled."""
        expired_day = ""
        while True:
            try:
                await self.flush()
                if expired_day != self._today(0):
                    await self._expire()
                    expired_day = self._today(0)
            except StoreUnavailableError as error:
                _logger.debug("%s", error)
            except Exception:
                _logger.exception("usage was not stored; it is tried again")
            await asyncio.sleep(INTERVAL_S)

    async def flush(self, timeout_s: float = INTERVAL_S) -> None:
        """Adds the counts to the database. An addition with an unknown outcome is repeated by the next call, and counts
        once.

        Raises:
          StoreUnavailableError: The database is unavailable, full or too slow.
        """
        if not self._adding:
            self._adding, self._counts = self._counts, {}
            self._number += 1
        if self._adding:
            addition = UsageAddition(self._replica, self._today(0), self._number)
            add = partial(usage_table.add, addition=addition, counts=self._adding)
            await self._database.run(add, timeout_s=timeout_s, lane=Lane.UPLOADS)
            self._adding = {}

    async def close(self) -> None:
        """Adds the remaining counts: an addition that may have failed, and the counts since then."""
        with suppress(StoreUnavailableError):
            for _ in range(2):
                await self.flush(_LAST_S)
            return
        _logger.warning("usage of the last seconds is lost: the database is unavailable")

    async def _expire(self) -> None:
        expire = partial(usage_table.expire, before=self._today(KEEP_DAYS), replicas_before=self._today(_REPLICA_DAYS))
        await self._database.run(expire, lane=Lane.UPLOADS)


def _usage(record: RequestRecord) -> TenantUsage:
    """Returns the usage of one choice. The usage of the prompt belongs to the first choice."""
    request, num_tokens = record.request, record.num_earlier + record.num_tokens
    if request.fork_of is not None:
        return TenantUsage(completion_tokens=num_tokens)
    num_read = 0 if request.replay is not None else record.num_earlier
    num_prompt = len(request.prompt_token_ids) - num_read
    return TenantUsage(1, num_prompt, min(record.num_cached, num_prompt), num_tokens)


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
