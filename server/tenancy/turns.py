"""One thing at a time for each tenant: work that is costly for all waits for its own tenant's only."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .tenant import tenant


@dataclass(slots=True)
class _Turn:
    """
    Attributes:
      num_users: Number of tasks that hold the lock or wait for it.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0


class TenantTurns:
    """A lock per tenant, first come, first served."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def mine(self) -> AsyncGenerator[None]:
        """Waits until no other task of this tenant is in such a `with` block."""
        owner = tenant.get()
        turn = self._turns.setdefault(owner, _Turn())
        turn.num_users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.num_users -= 1
            if not turn.num_users:
                del self._turns[owner]
