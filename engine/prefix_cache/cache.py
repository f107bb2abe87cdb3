"""The prefix cache: state snapshots within a budget of host memory, with an optional tier on disk below.

Snapshots are in a radix tree, whose edges are blocks of `PREFILL_BLOCK` tokens; each salt has a separate root. A node
stands for a block boundary. It holds the snapshot at that boundary, and the snapshots of prefixes that end less than a
block after it. A block's keys and values are stored once, in the node at the block's end, and shared by all snapshots
whose attention window includes the block. Keys of the tree are token prefixes, split into blocks.

The order of eviction is Greedy-Dual-Size. Caches of cachetools know neither priorities nor sizes that change.
"""

import hashlib
import heapq
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from ..types.config import PREFILL_BLOCK, CacheStats
from ..types.host_memory import ID_BYTES, HostArray, id_bytes
from ..types.snapshot import BlockState, Snapshot, chunk_snapshots

BLOCK_BYTES: Final = ID_BYTES * PREFILL_BLOCK
"""Size of a block's token ids."""

_UNUSED_WEIGHT: Final = 1 / 8
"""Eviction weight of a snapshot that was never reused and is neither a branch point nor a prompt end."""


@dataclass(frozen=True, slots=True)
class PrefixKey:
    """Tokens of a prompt or of a token history.

    Attributes:
      salt: Separates caches: keys with different salts never match.
      tokens: Token ids, `ID_BYTES` each.
    """

    salt: str
    tokens: bytes
    _hashes: list[tuple[bytes, ...]] = field(default_factory=lambda: [()], init=False, compare=False, repr=False)

    @classmethod
    def of(cls, token_ids: Sequence[int], salt: str) -> "PrefixKey":
        """Returns the key of these tokens."""
        return cls(salt, id_bytes(token_ids))

    def __len__(self) -> int:
        return len(self.tokens) // ID_BYTES

    def shares(self, other: "PrefixKey", length: int) -> bool:
        """Returns whether the salt and the first `length` tokens are the same as another key's."""
        end = length * ID_BYTES
        return self.salt == other.salt and self.tokens[:end] == other.tokens[:end]

    def block(self, index: int) -> bytes:
        """Returns the tokens of a whole block."""
        return self.tokens[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]

    def partial_block(self, length: int) -> bytes:
        """Returns the tokens between the last block boundary and `length`."""
        return self.tokens[length // PREFILL_BLOCK * BLOCK_BYTES : length * ID_BYTES]

    def block_hash(self, count: int) -> bytes:
        """Returns a hash of the salt and the first `count` blocks, chained block by block.

        Each hash is computed once. Any thread may call this: concurrent calls compute the same hash.
        """
        hashes = self._hashes[0]
        if count >= len(hashes):
            more = list(hashes) or [hashlib.sha256(json.dumps(["roost-prefix-2", self.salt]).encode()).digest()]
            for index in range(len(more) - 1, count):
                more.append(hashlib.sha256(more[-1] + self.block(index)).digest())
            self._hashes[0] = hashes = tuple(more)
        return hashes[count]


@dataclass(eq=False, slots=True)
class Node:
    """A block boundary of at least one cached prefix.

    Attributes:
      edge: Tokens of the block that ends at the boundary.
      length: Number of tokens up to this boundary.
      entries: Snapshots, by their tokens after this boundary.
      window: Keys and values of the block that ends at the boundary.
      num_users: Number of snapshots that include `window`.
      salt: Salt of the keys; set only at a root.
    """

    parent: "Node | None"
    edge: bytes
    length: int
    children: "dict[bytes, Node]" = field(default_factory=dict)
    entries: "dict[bytes, Entry]" = field(default_factory=dict)
    window: HostArray | None = None
    num_users: int = 0
    salt: str = ""

    def child(self, edge: bytes) -> "Node":
        """Returns the node after one more block, which is created if it is missing."""
        child = self.children.get(edge)
        if child is None:
            child = self.children[edge] = Node(self, edge, self.length + PREFILL_BLOCK)
        return child

    def longest_partial(self, key: PrefixKey) -> "Entry | None":
        """Returns the longest entry before the next block boundary whose tokens are a prefix of the key."""
        start = self.length * ID_BYTES
        tokens = key.tokens[start : min(start + BLOCK_BYTES, len(key.tokens) - ID_BYTES)]
        partial = (entry for rest, entry in self.entries.items() if rest and tokens.startswith(rest))
        return max(partial, key=lambda entry: len(entry.rest), default=None)


@dataclass(eq=False, slots=True)
class Entry:
    """A snapshot in the tree.

    Attributes:
      rest: Its tokens after its node's boundary.
      snapshot: The snapshot; whole blocks of its window are arrays of the tree.
      own_bytes: Size of the arrays that no other entry shares: all except the whole blocks of the window.
      is_reused: Whether a request was restored from it, or is likely to be.
      age: Age of the eviction queue when the entry was last used.
      ticket: Number of its valid place in the eviction queue; 0 if it has none.
    """

    node: Node
    rest: bytes
    snapshot: Snapshot
    own_bytes: int
    is_reused: bool
    age: float = 0.0
    ticket: int = 0

    @property
    def num_tokens_saved(self) -> int:
        """Number of tokens since the previous snapshot, which a request would prefill without this one."""
        node = self.node if self.rest else self.node.parent
        while node is not None and b"" not in node.entries:
            node = node.parent
        return self.snapshot.length - (0 if node is None else node.length)

    @property
    def priority(self) -> float:
        """Priority in the eviction queue: age at the last use, plus tokens saved per byte that eviction frees."""
        freed = self.own_bytes
        for node in self.window_nodes():
            if node.num_users == 1 and node.window is not None:
                freed += node.window.nbytes
        is_branch_point = not self.rest and len(self.node.children) + len(self.node.entries) > 2
        weight = 1.0 if self.is_reused or is_branch_point else _UNUSED_WEIGHT
        return self.age + weight * self.num_tokens_saved / max(freed, 1)  # if all its arrays are shared, none is freed

    def window_nodes(self) -> list[Node]:
        """Returns the nodes that hold the whole blocks of its window, latest first."""
        nodes, node = [], self.node
        for _ in range(sum(len(block) == PREFILL_BLOCK for block in self.snapshot.window)):
            nodes.append(node)
            assert node.parent is not None
            node = node.parent
        return nodes


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
      is_inexact: Whether requests are also restored between two block boundaries, and from states of generated
        histories. Both give other bits than prefilling the whole prompt.
      disk: The tier below, which stores every snapshot that prefilling has produced; None if there is none.
      num_inserts: Number of times that snapshots were added or deferred. While it is unchanged, a look-up finds no more
        than the last one.

    Args:
      window: Number of tokens that attention looks back on.
      budget: Maximum size of the snapshots in bytes.
    """

    def __init__(self, window: int, budget: int, disk: CacheTier | None = None, *, is_inexact: bool = False) -> None:
        self.is_inexact = is_inexact
        self.tree = RadixTree()
        self.evictions = EvictionQueue()
        self.num_inserts = 0
        self._window = window
        self._budget = budget
        self.disk = disk
        self._counts = Counter[str]()
        self._deferred: deque[tuple[PrefixKey, int, Callable[[], None]]] = deque()

    @property
    def stats(self) -> CacheStats:
        """Counters of the cache and of the tier below."""
        return CacheStats(
            budget=self._budget,
            num_bytes=self.tree.num_bytes,
            snapshots=self.tree.num_entries,
            disk_bytes=0 if self.disk is None else self.disk.num_bytes,
            disk_errors=0 if self.disk is None else self.disk.num_errors,
            **self._counts,
        )

    def matched_length(self, key: PrefixKey) -> int:
        """Returns the number of tokens that `match_prefix` would restore from memory. It does not mark an entry as
        used.
        """
        entry = self._find(key)
        return 0 if entry is None else entry.snapshot.length

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
        self._counts["queries"] += 1
        entry = self._find(key, at_block_boundary=at_block_boundary)
        found = None if entry is None else entry.snapshot
        if fetched is not None and fetched.length > (0 if found is None else found.length):
            self._counts["disk_hits"] += 1
            self.insert(key, [fetched], on_disk=False)
            found, entry = fetched, self._find(key, at_block_boundary=at_block_boundary)
        if entry is not None:
            entry.is_reused = True
            self.evictions.use(entry)
        if found is not None:
            self._counts["hits"] += 1
            self._counts["hit_tokens"] += found.length
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
        self._counts["hits"] += not matched
        self._counts["hit_tokens"] += entry.snapshot.length - matched
        return entry.snapshot

    def insert(self, key: PrefixKey, snapshots: Sequence[Snapshot], *, on_disk: bool = True) -> None:
        """Adds snapshots of prefixes of a key, shortest first. Existing entries are marked as used.

        Args:
          on_disk: Whether the tier below gets them too. It gets no states of generated histories, and none that come
            without the window blocks of earlier snapshots.
        """
        if on_disk and self.disk is not None:
            self.disk.store(key, snapshots)
        self.num_inserts += 1
        for entry in self.tree.insert(key, snapshots):
            self.evictions.use(entry)
        while self.tree.num_bytes > self._budget:
            self.tree.remove(self.evictions.pop())
            self._counts["evictions"] += 1

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

    def close(self) -> None:
        """Adds the deferred snapshots, and waits until the tier below has stored everything."""
        try:
            self.settle()
        finally:
            if self.disk is not None:
                self.disk.close()

    def _find(self, key: PrefixKey, *, at_block_boundary: bool = False) -> Entry | None:
        if any(key.shares(deferred, length) for deferred, length, _ in self._deferred):
            self.settle()
        return self.tree.find(key, at_block_boundary=at_block_boundary or not self.is_inexact)


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

    def _push(self, entry: Entry) -> None:
        self._num_tickets += 1
        entry.ticket = self._num_tickets
        heapq.heappush(self._heap, (entry.priority, entry.ticket, entry))


class RadixTree:
    """Finds and stores snapshots by their tokens.

    Attributes:
      roots: Root of each salt that has entries.
      num_bytes: Size of all arrays.
      num_entries: Number of snapshots.
    """

    def __init__(self) -> None:
        self.roots: dict[str, Node] = {}
        self.num_bytes = 0
        self.num_entries = 0

    def find(self, key: PrefixKey, *, at_block_boundary: bool) -> Entry | None:
        """Returns the entry of the longest prefix: the key itself, if its snapshot has `hidden`, or a shorter one.

        Args:
          at_block_boundary: Whether a shorter prefix must end at a block boundary.
        """
        found, length = None, len(key)
        for node in self._path(key):  # a long conversation has thousands of nodes, so each must be cheap
            if node.length < length:
                found = node.entries.get(b"", found)
                found = found if at_block_boundary else node.longest_partial(key) or found
            if length - node.length < PREFILL_BLOCK:
                whole = node.entries.get(key.partial_block(length))
                if whole is not None and whole.snapshot.hidden is not None:
                    return whole
        return found

    def insert(self, key: PrefixKey, snapshots: Sequence[Snapshot]) -> Iterator[Entry]:
        """Stores snapshots of prefixes of a key, shortest first, and yields the entry of each.

        An existing entry is yielded unchanged, or replaced by one that adds `hidden`.
        """
        path = self._path(key) or [self.roots.setdefault(key.salt, Node(None, b"", 0, salt=key.salt))]
        for snapshot in snapshots:
            for index in range(len(path) - 1, snapshot.length // PREFILL_BLOCK):
                path.append(path[-1].child(key.block(index)))
            yield self._insert_at(path[: snapshot.length // PREFILL_BLOCK + 1], key, snapshot)

    def remove(self, entry: Entry) -> None:
        """Removes an entry, and the nodes that have no entries or children left."""
        self._detach(entry)
        node = entry.node
        while not (node.children or node.entries) and node.parent is not None:
            del node.parent.children[node.edge]
            node = node.parent
        if node.parent is None and not (node.children or node.entries):
            del self.roots[node.salt]

    def _path(self, key: PrefixKey) -> list[Node]:
        """Returns the nodes along a key, beginning with the root; none if its salt has no root."""
        node, tokens = self.roots.get(key.salt), key.tokens
        path = [] if node is None else [node]
        for end in range(BLOCK_BYTES, len(tokens) + 1 if path else 0, BLOCK_BYTES):
            node = path[-1].children.get(tokens[end - BLOCK_BYTES : end])
            if node is None:
                break
            path.append(node)
        return path

    def _insert_at(self, path: list[Node], key: PrefixKey, snapshot: Snapshot) -> Entry:
        node, rest = path[-1], key.partial_block(snapshot.length)
        old = node.entries.get(rest)
        if old is not None and (snapshot.hidden is None or old.snapshot.hidden is not None):
            return old
        if old is not None:
            self._detach(old)
        shared = self._share_window(path, snapshot)
        is_end = not rest and snapshot.length // PREFILL_BLOCK == len(key) // PREFILL_BLOCK
        is_end |= snapshot.hidden is None and snapshot.length == len(key)
        is_reused = is_end or (old is not None and old.is_reused)
        node.entries[rest] = entry = Entry(node, rest, shared, _own_bytes(shared), is_reused)
        self.num_bytes += entry.own_bytes
        self.num_entries += 1
        return entry

    def _share_window(self, path: list[Node], snapshot: Snapshot) -> Snapshot:
        """Returns the snapshot with the tree's arrays as whole blocks of its window. Missing ones are added to the
        tree.
        """
        window = list(snapshot.window)
        whole = [index for index, block in enumerate(window) if len(block) == PREFILL_BLOCK]
        for index, node in zip(whole, path[len(path) - len(whole) :], strict=True):
            if node.window is None:
                node.window = window[index]
                self.num_bytes += window[index].nbytes
            window[index] = node.window
            node.num_users += 1
        return Snapshot(snapshot.length, snapshot.recurrent, tuple(window), snapshot.hidden)

    def _detach(self, entry: Entry) -> None:
        """Removes an entry and the blocks that no other entry uses; its node stays."""
        entry.ticket = 0
        del entry.node.entries[entry.rest]
        self.num_bytes -= entry.own_bytes
        self.num_entries -= 1
        for node in entry.window_nodes():
            node.num_users -= 1
            if not node.num_users and node.window is not None:
                self.num_bytes -= node.window.nbytes
                node.window = None


def _own_bytes(snapshot: Snapshot) -> int:
    partial = sum(block.nbytes for block in snapshot.window if len(block) < PREFILL_BLOCK)
    hidden = 0 if snapshot.hidden is None else snapshot.hidden.nbytes
    return sum(array.nbytes for array in snapshot.recurrent) + partial + hidden
