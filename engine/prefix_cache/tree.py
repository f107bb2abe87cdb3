"""States of prompts that were read before, found by their tokens: what is kept, and what makes room. Pure host Python.

A radix tree whose edges are blocks of 64 tokens, one tree per salt. A node is a point of the grid; snapshots hang on
it, one for the point itself and others for prompts that end less than a block behind it. A block's keys and values lie
in the node at its end, once, and are shared by all snapshots whose window holds them.
"""

import hashlib
import heapq
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from ..core.arrays import HostArray
from ..core.config import PREFILL_BLOCK, CacheStats
from ..core.snapshot import Mark, Snapshot, follow

_ID_BYTES: Final = array("i").itemsize
_EDGE_BYTES: Final = _ID_BYTES * PREFILL_BLOCK

_UNPROVEN: Final = 1 / 8
"""What a snapshot counts for that nobody has gone on from, where no texts part and no prompt ends."""


@dataclass(frozen=True, slots=True)
class PromptKey:
    """A prompt as the tree takes it.

    Attributes:
      salt: prompts of another one are as if they did not exist.
      tokens: ids, 4 bytes each.
    """

    salt: str
    tokens: bytes
    _links: list[tuple[bytes, ...]] = field(default_factory=lambda: [()], init=False, compare=False, repr=False)

    @classmethod
    def of(cls, token_ids: Sequence[int], salt: str) -> "PromptKey":
        return cls(salt, array("i", token_ids).tobytes())

    def __len__(self) -> int:
        return len(self.tokens) // _ID_BYTES

    def block(self, index: int) -> bytes:
        """The tokens of a whole block of the grid."""
        return self.tokens[index * _EDGE_BYTES : (index + 1) * _EDGE_BYTES]

    def rest(self, length: int) -> bytes:
        """The tokens between the last point of the grid and `length`."""
        return self.tokens[length // PREFILL_BLOCK * _EDGE_BYTES : length * _ID_BYTES]

    def link(self, block: int) -> bytes:
        """Returns a hash of the salt and the first so many blocks, chained block by block; each is computed once.

        Any thread may call it: two at the same time compute the same.
        """
        links = self._links[0]
        if block >= len(links):
            more = list(links) or [hashlib.sha256(json.dumps(["roost-prefix-2", self.salt]).encode()).digest()]
            for index in range(len(more) - 1, block):
                more.append(hashlib.sha256(more[-1] + self.block(index)).digest())
            self._links[0] = links = tuple(more)
        return links[block]


@dataclass(eq=False, slots=True)
class _Node:
    """A point of the grid.

    Attributes:
      length: tokens up to here.
      edge: the last `PREFILL_BLOCK` of them.
      salt: of the prompts, at the root of a tree only.
      entries: snapshots, by their tokens behind this point.
      window, num_users: the last block's keys and values, and how many snapshots need them.
    """

    parent: "_Node | None"
    edge: bytes
    length: int
    children: "dict[bytes, _Node]" = field(default_factory=dict)
    entries: "dict[bytes, _Entry]" = field(default_factory=dict)
    window: HostArray | None = None
    num_users: int = 0
    salt: str = ""


@dataclass(eq=False, slots=True)
class _Entry:
    """A snapshot in the tree.

    Attributes:
      rest: its tokens behind its node.
      snapshot: with arrays that are the tree's own.
      is_proven: whether somebody has gone on from here, or is likely to.
      age: the cache's when it was last used.
      stamp: that of its one valid place in the queue.
    """

    node: _Node
    rest: bytes
    snapshot: Snapshot
    is_proven: bool
    age: float
    stamp: int = 0


@runtime_checkable
class LowerTier(Protocol):
    """Keeps states for longer than the process lives.

    Attributes:
      max_fetches: number of prompts that may be searched for, or held after they were found, at a time.
    """

    max_fetches: int
    num_errors: int

    @property
    def num_bytes(self) -> int:
        """Size of what it holds."""

    def fetch(self, prompt: PromptKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        """Returns at once. Another thread finds the longest state of a prompt with more than `above` tokens, and calls
        `done` with it, or with None."""

    def store(self, prompt: PromptKey, snapshots: Sequence[Snapshot]) -> None:
        """Takes in states of a prompt; returns at once."""

    def close(self) -> None:
        """Returns once it has all that it was told."""


class StateCache:
    """Snapshots within a budget of bytes.

    The one to go first is that which saves the least work for its bytes and was not used for the longest time
    (Greedy-Dual: what is used is worth its gain more than what went last). Its gain is the tokens that would have to be
    read again, per byte that its end sets free; an eighth of that where nobody branches. So a long text is thinned
    out before it is forgotten: with each point that goes, its neighbours become worth more.

    Attributes:
      is_inexact: whether prompts are also read on from between two points of the grid, and from what `keep_end` has
        taken in. Both give other bits than to read all of them.

    Args:
      window: tokens that attention looks back on.
      budget: in bytes.
      disk: a tier below, which stores all states that were read. What it finds is handed to `look_up`.
    """

    def __init__(self, window: int, budget: int, disk: LowerTier | None = None, *, is_inexact: bool = False) -> None:
        self.is_inexact = is_inexact
        self._window = window
        self._budget = budget
        self._disk = disk
        self._roots: dict[str, _Node] = {}
        self._queue: list[tuple[float, int, _Entry]] = []
        self._stamps = 0
        self._age = 0.0
        self._bytes = 0
        self._snapshots = 0
        self._queries = 0
        self._hits = 0
        self._hit_tokens = 0
        self._evictions = 0
        self._disk_hits = 0

    def __repr__(self) -> str:
        return f"StateCache({self._snapshots} snapshots, {self._bytes} of {self._budget} bytes)"

    @property
    def stats(self) -> CacheStats:
        return CacheStats(
            budget=self._budget,
            num_bytes=self._bytes,
            snapshots=self._snapshots,
            queries=self._queries,
            hits=self._hits,
            hit_tokens=self._hit_tokens,
            evictions=self._evictions,
            disk_bytes=0 if self._disk is None else self._disk.num_bytes,
            disk_hits=self._disk_hits,
            disk_errors=0 if self._disk is None else self._disk.num_errors,
        )

    @property
    def max_fetches(self) -> int:
        """Number of prompts that may be searched for below at a time; 0 if there is no tier below."""
        return 0 if self._disk is None else self._disk.max_fetches

    def known_length(self, prompt: PromptKey) -> int:
        """Number of a prompt's tokens that `look_up` would restore from memory."""
        entry = self._find(prompt, not self.is_inexact)
        return 0 if entry is None else entry.snapshot.length

    def fetch(self, prompt: PromptKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        """Searches the tier below; see `LowerTier.fetch`."""
        assert self._disk is not None
        self._disk.fetch(prompt, above, done)

    def look_up(self, prompt: PromptKey, fetched: Snapshot | None = None, *, on_grid: bool = False) -> Snapshot | None:
        """The snapshot that spares the most: the prompt's own end, with `hidden`, or the last one that leaves something
        to read; that lies on the grid, unless the cache is inexact.

        Args:
          fetched: what the tier below has found; it is taken in if it spares more.
          on_grid: in an inexact one too.
        """
        self._queries += 1
        on_grid = on_grid or not self.is_inexact
        entry = self._find(prompt, on_grid)
        found = None if entry is None else entry.snapshot
        if fetched is not None and fetched.length > (0 if found is None else found.length):
            self._disk_hits += 1
            self._admit(prompt, [fetched])
            found, entry = fetched, self._find(prompt, on_grid)
        if entry is not None:
            entry.is_proven = True
            self._use(entry)
        if found is not None:
            self._hits += 1
            self._hit_tokens += found.length
        return found

    def close(self) -> None:
        """Returns once the tier below has all that it was told."""
        if self._disk is not None:
            self._disk.close()

    def extend(self, prompt: PromptKey, last: Snapshot | None, marks: Sequence[Mark]) -> Snapshot:
        """Takes in what reading a chunk has left; gives the state at its end.

        Args:
          prompt: whose chunk it is.
          last: where the chunk began; None for a prompt's beginning.
          marks: at least one.
        """
        snapshots = follow(last, marks, self._window)
        self.publish(prompt, snapshots)
        return snapshots[-1]

    def publish(self, prompt: PromptKey, snapshots: Sequence[Snapshot]) -> None:
        """Takes in snapshots of a prompt, in order; what is known already is used once more. Then makes room."""
        if self._disk is not None:
            self._disk.store(prompt, snapshots)
        self._admit(prompt, snapshots)

    def keep_end(self, text: PromptKey, snapshot: Snapshot) -> None:
        """Takes in the state that generating has left behind a text. It is told to nobody else."""
        self._admit(text, [snapshot])

    def _admit(self, prompt: PromptKey, snapshots: Sequence[Snapshot]) -> None:
        path = self._path(prompt) or [self._roots.setdefault(prompt.salt, _Node(None, b"", 0, salt=prompt.salt))]
        for snapshot in snapshots:
            for index in range(len(path) - 1, snapshot.length // PREFILL_BLOCK):
                path.append(_child(path[-1], prompt.block(index)))
            self._take_in(path[: snapshot.length // PREFILL_BLOCK + 1], prompt, snapshot)
        while self._bytes > self._budget:
            self._evict_one()

    def _find(self, prompt: PromptKey, on_grid: bool) -> _Entry | None:
        found, length = None, len(prompt)
        for node in self._path(prompt):  # of a long conversation some thousand, so little is done for each
            if node.length < length:
                found = node.entries.get(b"", found)
                found = found if on_grid else _behind(node, prompt) or found
            if length - node.length < PREFILL_BLOCK:
                whole = node.entries.get(prompt.rest(length))
                if whole is not None and whole.snapshot.hidden is not None:
                    return whole
        return found

    def _path(self, prompt: PromptKey) -> list[_Node]:
        """The nodes that a prompt goes along, as far as there are any; none where not even its salt is known."""
        node, tokens = self._roots.get(prompt.salt), prompt.tokens
        path = [] if node is None else [node]
        for end in range(_EDGE_BYTES, len(tokens) + 1 if path else 0, _EDGE_BYTES):
            node = path[-1].children.get(tokens[end - _EDGE_BYTES : end])
            if node is None:
                break
            path.append(node)
        return path

    def _take_in(self, path: list[_Node], prompt: PromptKey, snapshot: Snapshot) -> None:
        node, rest = path[-1], prompt.rest(snapshot.length)
        entry = node.entries.get(rest)
        if entry is not None and (snapshot.hidden is None or entry.snapshot.hidden is not None):
            self._use(entry)
            return
        if entry is not None:
            self._remove(entry)
        shared = self._share(path, snapshot)
        is_last = not rest and snapshot.length // PREFILL_BLOCK == len(prompt) // PREFILL_BLOCK
        is_last |= snapshot.hidden is None and snapshot.length == len(prompt)
        is_proven = is_last or (entry is not None and entry.is_proven)
        node.entries[rest] = entry = _Entry(node, rest, shared, is_proven, self._age)
        self._bytes += _own_bytes(entry)
        self._snapshots += 1
        self._use(entry)

    def _share(self, path: list[_Node], snapshot: Snapshot) -> Snapshot:
        """The snapshot with those blocks of its window that the tree has already, or has from now on."""
        window = list(snapshot.window)
        whole = [place for place, block in enumerate(window) if len(block) == PREFILL_BLOCK]
        for place, node in zip(whole, path[len(path) - len(whole) :], strict=True):
            if node.window is None:
                node.window = window[place]
                self._bytes += window[place].nbytes
            window[place] = node.window
            node.num_users += 1
        return Snapshot(snapshot.length, snapshot.recurrent, tuple(window), snapshot.hidden)

    def _use(self, entry: _Entry) -> None:
        """Books that an entry was of use, and queues it anew."""
        entry.age = self._age
        self._enqueue(entry)
        if len(self._queue) > 2 * self._snapshots + 64:
            self._queue = [item for item in self._queue if item[2].stamp == item[1]]
            heapq.heapify(self._queue)

    def _enqueue(self, entry: _Entry) -> None:
        self._stamps += 1
        entry.stamp = self._stamps
        heapq.heappush(self._queue, (self._worth(entry), entry.stamp, entry))

    def _worth(self, entry: _Entry) -> float:
        freed = _own_bytes(entry)
        for node in self._nodes_of(entry):
            if node.num_users == 1 and node.window is not None:
                freed += node.window.nbytes
        is_junction = not entry.rest and len(entry.node.children) + len(entry.node.entries) > 2
        chance = 1.0 if entry.is_proven or is_junction else _UNPROVEN
        return entry.age + chance * _gap(entry) / freed

    def _evict_one(self) -> None:
        """What was queued may be worth more by now, since its neighbours went; then others come first."""
        while True:
            worth, stamp, entry = self._queue[0]
            if entry.stamp != stamp:
                heapq.heappop(self._queue)
            elif self._worth(entry) > worth:
                heapq.heappop(self._queue)
                self._enqueue(entry)
            else:
                heapq.heappop(self._queue)
                self._age = max(self._age, worth)
                self._evictions += 1
                self._remove(entry)
                self._prune(entry.node)
                return

    def _remove(self, entry: _Entry) -> None:
        entry.stamp = 0
        del entry.node.entries[entry.rest]
        self._bytes -= _own_bytes(entry)
        self._snapshots -= 1
        for node in self._nodes_of(entry):
            node.num_users -= 1
            if not node.num_users and node.window is not None:
                self._bytes -= node.window.nbytes
                node.window = None

    def _prune(self, node: _Node) -> None:
        """Forgets nodes from which nothing hangs any more."""
        while not (node.children or node.entries) and node.parent is not None:
            del node.parent.children[node.edge]
            node = node.parent
        if node.parent is None and not (node.children or node.entries):
            del self._roots[node.salt]

    def _nodes_of(self, entry: _Entry) -> list[_Node]:
        """Where the whole blocks of an entry's window lie, latest first."""
        nodes, node = [], entry.node
        for _ in range(sum(len(block) == PREFILL_BLOCK for block in entry.snapshot.window)):
            nodes.append(node)
            assert node.parent is not None
            node = node.parent
        return nodes


def _child(node: _Node, edge: bytes) -> _Node:
    child = node.children.get(edge)
    if child is None:
        child = node.children[edge] = _Node(node, edge, node.length + PREFILL_BLOCK)
    return child


def _behind(node: _Node, prompt: PromptKey) -> _Entry | None:
    """The longest state behind a point of the grid, and before the next one, with which a prompt goes on."""
    start = node.length * _ID_BYTES
    tokens = prompt.tokens[start : min(start + _EDGE_BYTES, len(prompt.tokens) - _ID_BYTES)]
    begun = (entry for rest, entry in node.entries.items() if rest and tokens.startswith(rest))
    return max(begun, key=lambda entry: len(entry.rest), default=None)


def _own_bytes(entry: _Entry) -> int:
    """What nobody shares: also the keys and values of blocks that are not whole, at the window's ends."""
    parts = sum(block.nbytes for block in entry.snapshot.window if len(block) < PREFILL_BLOCK)
    return entry.snapshot.own_bytes + parts


def _gap(entry: _Entry) -> int:
    """Tokens since the snapshot before, which would have to be read again."""
    node = entry.node if entry.rest else entry.node.parent
    while node is not None and b"" not in node.entries:
        node = node.parent
    return entry.snapshot.length - (0 if node is None else node.length)
