"""One lock per tenant, so that costly work of a tenant waits only for work of the same tenant."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .tenant import tenant


@dataclass(slots=True)
class _TenantLock:
    """A lock that exists while tasks use it.

    Attributes:
      num_users: Number of tasks that hold the lock or wait for it.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0


class TenantLocks:
    """A lock per tenant; waiting tasks acquire it in order of arrival."""

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
