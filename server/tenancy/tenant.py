"""The tenant on whose behalf code runs, the owner of the request's API key; and one lock per tenant."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

tenant: Final[ContextVar[str]] = ContextVar("tenant", default="")
"""Name of the current request's tenant; "" for all requests if the server has no keys."""


@dataclass(slots=True)
class _TenantLock:
    """A lock that exists while tasks use it.

    Attributes:
      num_users: Number of tasks that hold the lock or wait for it.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0


class TenantLocks:
    """A lock per tenant, so that costly work waits only for work of the same tenant, in order of arrival."""

    def __init__(self) -> None:
        self._locks: dict[str, _TenantLock] = {}

    @asynccontextmanager
    async def hold(self) -> AsyncGenerator[None]:
        """Holds the current tenant's lock until the end of the `with` block."""
        owner = tenant.get()
        lock = self._locks.setdefault(owner, _TenantLock())
        lock.num_users += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.num_users -= 1
            if not lock.num_users:
                del self._locks[owner]
