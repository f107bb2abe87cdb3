"""Queue of grammars that wait to be compiled: bounded, and fair between tenants by CPU time."""

from collections import deque
from dataclasses import dataclass
from typing import Final

from ....engine.scheduling.waiting_queue import FairShares
from .spec import GrammarBusyError

_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A grammar's place in the queue."""

    tenant: str


class Turns:
    """Compile queue. The tenant that has used the least CPU time is next, with its oldest grammar.

    Where there are several tenants, none may take more of the queue, or of the lanes, than it leaves free. The queue
    knows no clock and no threads.

    Args:
      lanes: how many are compiled at a time.
      max_waiting: how many may wait.
      tenants: how many there are.
    """

    def __init__(self, lanes: int, max_waiting: int, tenants: int = 1) -> None:
        self._lanes, self._max_waiting, self._is_shared = lanes, max_waiting, tenants > 1
        self._shares = FairShares()
        self._waiting: dict[str, deque[Turn]] = {}
        self._running: dict[str, int] = {}

    @property
    def num_waiting(self) -> int:
        """Grammars that have not begun."""
        return sum(map(len, self._waiting.values()))

    def add(self, tenant: str) -> Turn:
        """Queues a grammar.

        Raises:
          GrammarBusyError: there is no place for this one.
        """
        own, free = len(self._waiting.get(tenant, ())), self._max_waiting - self.num_waiting
        if free <= 0 or (self._is_shared and own >= free):
            whose = " of this API key" if self._is_shared and free > 0 else ""
            raise GrammarBusyError(f"too many grammars{whose} wait to be compiled; try again later")
        if tenant not in self._waiting:
            self._waiting[tenant] = deque()
            self._shares.enter(tenant)
        turn = Turn(tenant)
        self._waiting[tenant].append(turn)
        return turn

    def remove(self, turn: Turn) -> None:
        """Takes out one that waits, and nobody waits for."""
        self._waiting[turn.tenant].remove(turn)
        self._forget_if_empty(turn.tenant)

    def next(self) -> Turn | None:
        """Takes out the next, which has a lane until `end`; None where none may begin."""
        free = self._lanes - sum(self._running.values())
        tenants = [tenant for tenant in self._waiting if self._may_run(tenant, free)]
        if not tenants:
            return None
        tenant = self._shares.first(tenants)
        turn = self._waiting[tenant].popleft()
        self._forget_if_empty(tenant)
        self._running[tenant] = self._running.get(tenant, 0) + 1
        return turn

    def end(self, turn: Turn, cpu_s: float) -> None:
        """Frees a lane, and books the CPU time that was used there."""
        self._running[turn.tenant] -= 1
        if not self._running[turn.tenant]:
            del self._running[turn.tenant]
        self._shares.charge(turn.tenant, int(cpu_s * _MICROSECONDS))

    def _may_run(self, tenant: str, free: int) -> bool:
        return free > 0 and not (self._is_shared and self._running.get(tenant, 0) >= free)

    def _forget_if_empty(self, tenant: str) -> None:
        if not self._waiting[tenant]:
            del self._waiting[tenant]
