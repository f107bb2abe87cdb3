"""Which slots are free. A slot is an int, a row of the state pool; it means nothing without an owner."""

import heapq


class SlotPool:
    """Hands out the lowest free slot, so that the slots in use stay close together.

    Free and used slots are disjoint and together are all slots, always.
    """

    def __init__(self, size: int) -> None:
        self.size = size
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
        slot = heapq.heappop(self._free)
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
        heapq.heappush(self._free, slot)
