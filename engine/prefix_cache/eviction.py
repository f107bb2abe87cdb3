"""Order of eviction: Greedy-Dual-Size. Caches of cachetools know neither priorities nor sizes that change."""

import heapq
from typing import Final

from .tree import Entry

_UNUSED_WEIGHT: Final = 1 / 8
"""Eviction weight of a snapshot that was never reused and is neither a branch point nor a prompt end."""


class EvictionQueue:
    """Finds the entry that saves the least prefill for its bytes and was not used for the longest time.

    An entry's priority is the queue's age at its last use plus its gain: the tokens that would have to be prefilled
    again, per byte that its eviction frees. The age is the priority of the last entry that was evicted. So a long
    history is thinned out before it vanishes: with each entry that goes, its neighbours save more tokens.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._max_heap = 64
        self._num_tickets = 0
        self._age = 0.0

    def use(self, entry: Entry) -> None:
        """Adds an entry, or notes that it was used."""
        entry.age = self._age
        self._push(entry)
        if len(self._heap) > self._max_heap:
            self._heap = [item for item in self._heap if item[2].ticket == item[1]]
            heapq.heapify(self._heap)
            self._max_heap = 2 * len(self._heap) + 64

    def pop(self) -> Entry:
        """Takes out the entry with the lowest priority."""
        while True:
            priority, ticket, entry = heapq.heappop(self._heap)
            if entry.ticket != ticket:
                continue
            if _priority(entry) > priority:  # its neighbours were evicted since
                self._push(entry)
                continue
            self._age = max(self._age, priority)
            return entry

    def __len__(self) -> int:
        return sum(entry.ticket == ticket for _, ticket, entry in self._heap)

    def _push(self, entry: Entry) -> None:
        self._num_tickets += 1
        entry.ticket = self._num_tickets
        heapq.heappush(self._heap, (_priority(entry), entry.ticket, entry))


def _priority(entry: Entry) -> float:
    freed = entry.own_bytes
    for node in entry.window_nodes():
        if node.num_users == 1 and node.window is not None:
            freed += node.window.nbytes
    weight = 1.0 if entry.is_reused or entry.is_branch_point else _UNUSED_WEIGHT
    return entry.age + weight * entry.num_tokens_saved / freed
