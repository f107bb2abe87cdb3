"""Bounded queue of grammars that wait to be compiled, fair to tenants by CPU time."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from ....engine.scheduling.waiting_queue import FairShares
from .spec import GrammarBusyError

_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class QueueEntry:
    """A grammar's place in the queue."""

    tenant: str


class CompileQueue:
    """Queue of grammars. The oldest grammar of the tenant that has used the least CPU time is next.

    With several tenants, none may hold more of the queue, or of the lanes, than it leaves free. The queue uses neither
    clocks nor threads.

    Args:
      lanes: Number of grammars that are compiled at the same time.
      max_waiting: Maximum number of waiting grammars.
      tenants: Number of tenants.
    """

    def __init__(self, lanes: int, max_waiting: int, tenants: int = 1) -> None:
        self._lanes, self._max_waiting, self._is_shared = lanes, max_waiting, tenants > 1
        self._shares = FairShares()
        self._waiting: dict[str, deque[QueueEntry]] = {}
        self._running: dict[str, int] = {}

    @property
    def num_waiting(self) -> int:
        """Number of waiting grammars."""
        return sum(map(len, self._waiting.values()))

    def add(self, tenant: str) -> QueueEntry:
        """Queues a grammar.

        Raises:
          GrammarBusyError: The queue, or the tenant's share of it, is full.
        """
        own, free = len(self._waiting.get(tenant, ())), self._max_waiting - self.num_waiting
        if free <= 0 or (self._is_shared and own >= free):
            whose = " of this API key" if self._is_shared and free > 0 else ""
            raise GrammarBusyError(f"too many grammars{whose} wait to be compiled; try again later")
        if tenant not in self._waiting:
            self._waiting[tenant] = deque()
            self._shares.enter(tenant)
        entry = QueueEntry(tenant)
        self._waiting[tenant].append(entry)
        return entry

    def remove(self, entry: QueueEntry) -> None:
        """Removes a waiting grammar."""
        self._waiting[entry.tenant].remove(entry)
        self._forget_if_empty(entry.tenant)

    def next(self) -> QueueEntry | None:
        """Removes and returns the next grammar, which occupies a lane until `end`; None if no grammar may start."""
        free = self._lanes - sum(self._running.values())
        tenants = [tenant for tenant in self._waiting if self._may_run(tenant, free)]
        if not tenants:
            return None
        tenant = self._shares.first(tenants)
        entry = self._waiting[tenant].popleft()
        self._forget_if_empty(tenant)
        self._running[tenant] = self._running.get(tenant, 0) + 1
        return entry

    def end(self, entry: QueueEntry, cpu_s: float) -> None:
        """Frees a lane, and charges the used CPU time to the tenant."""
        self._running[entry.tenant] -= 1
        if not self._running[entry.tenant]:
            del self._running[entry.tenant]
        self._shares.charge(entry.tenant, int(cpu_s * _MICROSECONDS))

    def _may_run(self, tenant: str, free: int) -> bool:
        return free > 0 and not (self._is_shared and self._running.get(tenant, 0) >= free)

    def _forget_if_empty(self, tenant: str) -> None:
        if not self._waiting[tenant]:
            del self._waiting[tenant]
