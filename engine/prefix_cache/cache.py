"""The prefix cache: state snapshots within a budget of host memory, with an optional tier on disk below.

The order of eviction is Greedy-Dual-Size. Caches of cachetools know neither priorities nor sizes that change.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from ..types.config import CacheStats
from ..types.snapshot import BlockState, Snapshot, chunk_snapshots
from .tree import Entry, PrefixKey, RadixTree


class EvictionQueue:
    """Finds the entry that saves the least prefill for its bytes and was not used for the longest time.

    An entry's priority is the queue's age at its last use plus its gain: the tokens that would be prefilled
    again, per byte that its eviction frees. The age is the priority of the last evicted entry. A long history is
    therefore thinned out before it disappears: with each evicted entry, its neighbours save more tokens.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry]] = []
        self._max_heap = 64
        self._num_tickets = 0
        self._age = 0.0

    def use(self, entry: Entry) -> None:
        """Adds an entry, or marks it as used."""
        entry.age = self._age
        self._push(entry)
        if len(self._heap) > self._max_heap:
            self._heap = [item for item in self._heap if item[2].ticket == item[1]]
            heapq.heapify(self._heap)
            self._max_heap = 2 * len(self._heap) + 64

    def pop(self) -> Entry:
        """Removes and returns the entry with the lowest priority."""
        while True:
            priority, ticket, entry = heapq.heappop(self._heap)
            if entry.ticket != ticket:
                continue
            if entry.priority > priority:  # its neighbours were evicted, which raised its priority
                self._push(entry)
                continue
            self._age = max(self._age, priority)
            return entry

    def __len__(self) -> int:
        return sum(entry.ticket == ticket for _, ticket, entry in self._heap)

    def _push(self, entry: Entry) -> None:
        self._num_tickets += 1
        entry.ticket = self._num_tickets
        heapq.heappush(self._heap, (entry.priority, entry.ticket, entry))


@runtime_checkable
class CacheTier(Protocol):
    """A tier below memory, whose snapshots outlive the process.

    Attributes:
      max_fetches: Maximum number of keys whose fetches are running, or whose results are held, at a time.
      num_errors: Number of operations that failed.
    """

    max_fetches: int
    num_errors: int

    @property
    def num_bytes(self) -> int:
        """Size of the stored snapshots."""

    def fetch(self, key: PrefixKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        """Starts a search for the longest cached prefix with more than `above` tokens, without waiting for it.

        Another thread calls `done` with the snapshot, or with None.
        """

    def store(self, key: PrefixKey, snapshots: Sequence[Snapshot]) -> None:
        """Starts to store snapshots of prefixes of a key, without waiting for it."""

    def close(self) -> None:
        """Waits until all snapshots are stored."""


class PrefixCache:
    """Maps token prefixes to snapshots within a budget of bytes. Only the engine's thread uses it.

    Attributes:
      tree: The snapshots.
      evictions: Order in which they are evicted.
      is_inexact: Whether requests are also restored between two block boundaries, and from states that `insert_one` has
        added. Both give other bits than prefilling the whole prompt.
      num_inserts: Number of times that snapshots were added or deferred. While it is unchanged, a look-up finds no more
        than the last one.

    Args:
      window: Number of tokens that attention looks back on.
      budget: Maximum size of the snapshots in bytes.
      disk: The tier below, which stores every snapshot that is inserted.
    """

    def __init__(self, window: int, budget: int, disk: CacheTier | None = None, *, is_inexact: bool = False) -> None:
        self.is_inexact = is_inexact
        self.tree = RadixTree()
        self.evictions = EvictionQueue()
        self.num_inserts = 0
        self._window = window
        self._budget = budget
        self._disk = disk
        self._queries = 0
        self._hits = 0
        self._hit_tokens = 0
        self._num_evicted = 0
        self._disk_hits = 0
        self._deferred: deque[tuple[PrefixKey, int, Callable[[], None]]] = deque()

    def __repr__(self) -> str:
        return f"PrefixCache({self.tree.num_entries} snapshots, {self.tree.num_bytes} of {self._budget} bytes)"

    @property
    def stats(self) -> CacheStats:
        """Counters of the cache and of the tier below."""
        return CacheStats(
            budget=self._budget,
            num_bytes=self.tree.num_bytes,
            snapshots=self.tree.num_entries,
            queries=self._queries,
            hits=self._hits,
            hit_tokens=self._hit_tokens,
            evictions=self._num_evicted,
            disk_bytes=0 if self._disk is None else self._disk.num_bytes,
            disk_hits=self._disk_hits,
            disk_errors=0 if self._disk is None else self._disk.num_errors,
        )

    @property
    def max_fetches(self) -> int:
        """Maximum number of keys to fetch from the tier below at a time; 0 if there is none."""
        return 0 if self._disk is None else self._disk.max_fetches

    def matched_length(self, key: PrefixKey) -> int:
        """Returns the number of tokens that `match_prefix` would restore from memory. It does not mark an entry as
        used.
        """
        entry = self._find(key)
        return 0 if entry is None else entry.snapshot.length

    def fetch(self, key: PrefixKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        """Searches the tier below; see `CacheTier.fetch`."""
        assert self._disk is not None
        self._disk.fetch(key, above, done)

    def match_prefix(
        self, key: PrefixKey, fetched: Snapshot | None = None, *, at_block_boundary: bool = False
    ) -> Snapshot | None:
        """Returns the snapshot of the longest cached prefix.

        It covers the whole key if it has `hidden`; otherwise it leaves at least one token to prefill. Such a prefix
        ends at a block boundary, unless the cache is inexact.

        Args:
          fetched: Snapshot that the tier below has found; it is inserted if it is longer.
          at_block_boundary: Requires a block boundary even if the cache is inexact.
        """
        self._queries += 1
        entry = self._find(key, at_block_boundary=at_block_boundary)
        found = None if entry is None else entry.snapshot
        if fetched is not None and fetched.length > (0 if found is None else found.length):
            self._disk_hits += 1
            self._insert(key, [fetched])
            found, entry = fetched, self._find(key, at_block_boundary=at_block_boundary)
        if entry is not None:
            entry.is_reused = True
            self.evictions.use(entry)
        if found is not None:
            self._hits += 1
            self._hit_tokens += found.length
        return found

    def extend_match(self, key: PrefixKey, matched: int) -> Snapshot | None:
        """Returns the snapshot of a longer cached prefix than the one that `match_prefix` has found; None if there is
        none.

        It is counted as if `match_prefix` had found it.

        Args:
          matched: Number of tokens of the prefix that was found; 0 for none.
        """
        entry = self._find(key)
        if entry is None or entry.snapshot.length <= matched:
            return None
        entry.is_reused = True
        self.evictions.use(entry)
        self._hits += not matched
        self._hit_tokens += entry.snapshot.length - matched
        return entry.snapshot

    def insert(self, key: PrefixKey, snapshots: Sequence[Snapshot]) -> None:
        """Adds snapshots of prefixes of a key, shortest first, here and to the tier below. Existing entries are marked
        as used.
        """
        if self._disk is not None:
            self._disk.store(key, snapshots)
        self._insert(key, snapshots)

    def insert_chunk(self, key: PrefixKey, last: Snapshot | None, block_states: Sequence[BlockState]) -> Snapshot:
        """Adds the states that prefilling a chunk has produced, and returns the snapshot at its end.

        Args:
          key: The prompt.
          last: Snapshot at the chunk's start; None at the prompt's start.
          block_states: At least one.
        """
        snapshots = chunk_snapshots(last, block_states, self._window)
        self.insert(key, snapshots)
        return snapshots[-1]

    def defer(self, key: PrefixKey, length: int, insert: Callable[[], None]) -> None:
        """Adds snapshots later, so that nothing waits for their arrays: in `settle`, or when a look-up may find one.

        Args:
          key: Key of whose prefixes they are.
          length: Number of tokens of the shortest one.
          insert: Waits for the arrays and calls `insert_chunk`.
        """
        self.num_inserts += 1
        self._deferred.append((key, length, insert))

    def settle(self) -> None:
        """Adds the deferred snapshots, in order."""
        while self._deferred:
            _, _, insert = self._deferred.popleft()
            insert()

    def insert_one(self, key: PrefixKey, snapshot: Snapshot) -> None:
        """Adds the state at the end of a key. The tier below does not receive it.

        The state belongs to a generated history, or comes without the window blocks of earlier snapshots.
        """
        self._insert(key, [snapshot])

    def close(self) -> None:
        """Adds the deferred snapshots, and waits until the tier below has stored everything."""
        try:
            self.settle()
        finally:
            if self._disk is not None:
                self._disk.close()

    def _find(self, key: PrefixKey, *, at_block_boundary: bool = False) -> Entry | None:
        if any(key.shares(deferred, length) for deferred, length, _ in self._deferred):
            self.settle()
        return self.tree.find(key, at_block_boundary=at_block_boundary or not self.is_inexact)

    def _insert(self, key: PrefixKey, snapshots: Sequence[Snapshot]) -> None:
        self.num_inserts += 1
        for entry in self.tree.insert(key, snapshots):
            self.evictions.use(entry)
        while self.tree.num_bytes > self._budget:
            self.tree.remove(self.evictions.pop())
            self._num_evicted += 1
