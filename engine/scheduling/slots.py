"""Which slots are free. A slot is an int, a row of the state pool; it means nothing without an owner."""

import heapq
from collections.abc import Sequence

from ..core.errors import ConfigError


class SlotPool:
    """Hands out the first free slot in an order, so that the slots in use stay close together there.

    Free and used slots are disjoint and together are all slots, always.

    Args:
      size: how many slots there are.
      order: all of them, that to be taken first in front; None is from 0 up.
    """

    def __init__(self, size: int, order: Sequence[int] | None = None) -> None:
        self.size = size
        self._order = range(size) if order is None else order
        self._rank = {slot: rank for rank, slot in enumerate(self._order)}
        self._free = list(range(size))
        self._used: set[int] = set()

    def __repr__(self) -> str:
        return f"SlotPool(size={self.size}, used={sorted(self._used)})"

    @property
    def num_free(self) -> int:
        """Slots without an owner."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots with an owner."""
        return len(self._used)

    def claim(self) -> int:
        """Takes a slot.

        Raises:
          IndexError: none is free.
        """
        slot = self._order[heapq.heappop(self._free)]
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Gives a slot back.

        Raises:
          ValueError: it is not in use.
        """
        if slot not in self._used:
            raise ValueError(f"slot {slot} is not in use")
        self._used.remove(slot)
        heapq.heappush(self._free, self._rank[slot])


class SlotReserve:
    """Keeps the last free slots for tenants with nothing running.

    A tenant that has something running takes a slot only while more than the reserve is free; one that has nothing
    running takes any. So a tenant finds a slot at once, however long others' requests run, as long as fewer than
    `size` others came in by the reserve. Nobody is preempted for it.

    Args:
      slots: number of slots.
      size: number of slots in reserve, less than `slots`.
    """

    def __init__(self, slots: int, size: int) -> None:
        if not 0 <= size < slots:
            raise ConfigError(f"reserved_slots must be less than slots ({slots}), got {size}")
        self._num_shared = slots - size

    def num_open(self, num_used: int) -> int:
        """Number of free slots that any tenant may take while so many are used."""
        return max(0, self._num_shared - num_used)
