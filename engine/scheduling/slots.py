"""Slots: which are free, and which are kept for tenants without a running request.

A slot is a row of the state pool, identified by its index.
"""

import heapq
from collections.abc import Iterable, Sequence

from ..types.errors import ConfigError


class SlotPool:
    """Claims the first free slot in a fixed order, so that slots in use stay close together.

    Free and used slots are disjoint, and together they are all slots.

    Args:
      order: All slots, in the order in which they are claimed; None stands for ascending order.
    """

    def __init__(self, size: int, order: Sequence[int] | None = None) -> None:
        self.size = size
        self._order = range(size) if order is None else order
        self._rank = {slot: rank for rank, slot in enumerate(self._order)}
        self._free = list(range(size))
        self._used: set[int] = set()
        self._pinned: set[int] = set()
        self._retained: set[int] = set()

    def __repr__(self) -> str:
        return f"SlotPool(size={self.size}, used={sorted(self._used)})"

    @property
    def num_free(self) -> int:
        """Number of slots without an owner."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Number of slots with an owner, and of retained slots."""
        return len(self._used)

    @property
    def retained(self) -> frozenset[int]:
        """Slots that were released while they were pinned."""
        return frozenset(self._retained)

    def rank(self, slot: int) -> int:
        """Returns the place of a slot in the order."""
        return self._rank[slot]

    def claim(self) -> int:
        """Claims the first free slot.

        Raises:
          IndexError: No slot is free.
        """
        slot = self._order[heapq.heappop(self._free)]
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Frees a slot; a pinned one is retained until `unpin`.

        Raises:
          ValueError: The slot has no owner.
        """
        if slot not in self._used or slot in self._retained:
            raise ValueError(f"slot {slot} is not in use")
        if slot in self._pinned:
            self._retained.add(slot)
        else:
            self._used.remove(slot)
            heapq.heappush(self._free, self._rank[slot])

    def is_pinned(self, slot: int) -> bool:
        """Returns whether a slot is kept from being reused."""
        return slot in self._pinned

    def pin(self, slots: Iterable[int]) -> None:
        """Keeps used slots from being reused until `unpin`, even if they are released before."""
        self._pinned.update(slots)

    def unpin(self) -> None:
        """Unpins all slots, and frees the retained ones."""
        self._pinned.clear()
        retained, self._retained = self._retained, set()
        for slot in retained:
            self.release(slot)


class SlotReserve:
    """Keeps the last free slots for tenants without a running request.

    A tenant with a running request may take a slot only while more slots than the reserve are free; a tenant without
    one may take any. A new tenant thus immediately gets a slot, independent of how long the requests of others run,
    unless `size` other tenants have used up the reserve. No request loses its slot for that.

    Args:
      size: Number of slots in reserve, less than `slots`.

    Raises:
      ConfigError: `size` is negative, or not less than `slots`.
    """

    def __init__(self, slots: int, size: int) -> None:
        if not 0 <= size < slots:
            raise ConfigError(f"reserved_slots must be less than slots ({slots}), got {size}")
        self._num_shared = slots - size

    def num_open(self, num_used: int) -> int:
        """Returns the number of free slots that any tenant may take.

        Args:
          num_used: Number of slots in use.
        """
        return max(0, self._num_shared - num_used)
