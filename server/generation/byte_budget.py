"""Budgets of memory that tenants share."""

import asyncio
from collections import Counter

from ..errors import kinds
from ..errors.request_errors import ApiError, too_many_bytes


class ByteBudget:
    """A number of bytes that tenants share.

    With several tenants, none may hold more than it leaves free, so that another tenant has room.

    Args:
      max_bytes: Maximum bytes that all tenants may hold together.
      tenants: Number of tenants.

    Attributes:
      num_bytes: Bytes that all tenants hold together.
    """

    def __init__(self, max_bytes: int, tenants: int = 1) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._is_shared = tenants > 1
        self._held: Counter[str] = Counter()
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}

    def reserve(self, owner: str, num_bytes: int) -> None:
        """Reserves bytes for a tenant. A tenant that holds nothing may exceed its share.

        Raises:
          ApiError: 413 if the bytes can never fit, 503 if they do not fit now, 429 if the tenant would exceed its
            share. Nothing is reserved then.
        """
        self._check(num_bytes)
        free, held = self._max_bytes - self.num_bytes, self._held[owner]
        if num_bytes > free:
            raise too_many_bytes()
        if self._is_shared and held and held + num_bytes > free:
            message = (
                "this API key's requests hold too much memory at a time: wait for some of them, or send smaller ones"
            )
            raise ApiError(kinds.TENANT_MEMORY_FULL, message)
        self._add(owner, num_bytes)

    def release(self, owner: str, num_bytes: int) -> None:
        """Returns bytes of a tenant to the budget."""
        self._add(owner, -num_bytes)
        self._admit()

    async def wait(self, owner: str, num_bytes: int) -> None:
        """Reserves bytes for a tenant once they fit. The tenant that holds the fewest is first; then the order of
        arrival decides.

        Raises:
          ApiError: 413, the bytes can never fit.
        """
        self._check(num_bytes)
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = owner, num_bytes
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(turn, None)
            self.release(owner, 0 if turn.cancelled() else num_bytes)  # the bytes may have been granted just before
            raise

    def _admit(self) -> None:
        while self._waiting:
            turn, (owner, num_bytes) = min(self._waiting.items(), key=lambda each: self._held[each[1][0]])
            if not turn.cancelled():  # otherwise its task is about to notice
                if num_bytes > self._max_bytes - self.num_bytes:
                    return
                self._add(owner, num_bytes)
                turn.set_result(None)
            del self._waiting[turn]

    def _check(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            size = f"{self._max_bytes / 2**20:.0f} MiB"
            message = f"the request would hold more than {size} of memory: send fewer or shorter prompts"
            raise ApiError(kinds.REQUEST_TOO_LARGE, message)

    def _add(self, owner: str, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        self._held[owner] += num_bytes
        if not self._held[owner]:
            del self._held[owner]
