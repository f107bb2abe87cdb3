"""Admission of work that other work may preempt, such as lines of batches."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from ..tenancy.tenant_locks import TenantLocks
from ..tenancy.workers import Workers
from .admission import Admission
from .byte_budget import ByteBudget


class PreemptibleWork:
    """Open preemptible work, and work that must run without it.

    Attributes:
      is_barred: Whether no preemptible work should run.
    """

    def __init__(self) -> None:
        self._num_open = self._num_alone = 0
        self._has_none = asyncio.Event()
        self._has_none.set()

    @property
    def is_barred(self) -> bool:
        return self._num_alone > 0

    def add(self, change: int) -> None:
        """Counts work that is opened (1) or released (-1)."""
        self._num_open += change
        if self._num_open:
            self._has_none.clear()
        else:
            self._has_none.set()

    @asynccontextmanager
    async def barred(self) -> AsyncIterator[None]:
        """Waits until no preemptible work is open, and bars it until the end of the `with` block."""
        self._num_alone += 1
        try:
            await self._has_none.wait()
            yield
        finally:
            self._num_alone -= 1


class PreemptibleAdmission(Admission):
    """Admission of work that waits for memory instead of failing, so that no results are discarded.

    While it waits, it releases the bytes that it holds, and then charges all bytes together, so that no waiting work
    blocks another. Few bytes are charged this way, since the work of a tenant takes turns from its first charge to its
    last. The caller that begins the work limits the bytes that are not parsed.

    Args:
      turns: Turns of the tenants.
      work: Counts open work.
      name: See `Admission`.
      is_repeated: See `Admission`.
    """

    preemptible = True

    def __init__(
        self,
        workers: Workers,
        kept: ByteBudget,
        owner: str,
        turns: TenantLocks,
        work: PreemptibleWork,
        name: str = "",
        *,
        is_repeated: bool = False,
    ) -> None:
        super().__init__(workers, None, kept, owner)
        self.name = name
        self.is_repeated = is_repeated
        self._work = work
        work.add(1)
        self._budget = kept
        self._turns = turns
        self._turn = AsyncExitStack()

    async def begin(self) -> None:
        await self._turn.enter_async_context(self._turns.hold())

    async def keep(self, num_bytes: int) -> None:
        """Charges bytes until the work ends, once they fit.

        Raises:
          ApiError: 413, the bytes can never fit.
        """
        held, self.num_kept = self.num_kept, 0
        self._budget.release(self.owner, held)
        await self._budget.wait(self.owner, held + num_bytes)
        self.num_kept = held + num_bytes

    async def settle(self) -> None:
        await self._turn.aclose()

    def _end(self) -> None:
        super()._end()
        self._work.add(-1)
