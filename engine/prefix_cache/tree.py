"""Radix tree of snapshots: edges are blocks of `PREFILL_BLOCK` tokens, and each salt has a separate root.

A node stands for a block boundary. It holds the snapshot at that boundary, and the snapshots of prefixes that end less
than a block after it. A block's keys and values are stored once, in the node at the block's end, and shared by all
snapshots whose attention window includes the block. Keys of the tree are token prefixes, split into blocks.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from ..types.arrays import HostArray
from ..types.config import PREFILL_BLOCK
from ..types.snapshot import Snapshot
from ..types.token_ids import ID_BYTES, id_bytes

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
    def is_branch_point(self) -> bool:
        """Whether cached prefixes diverge here."""
        return not self.rest and len(self.node.children) + len(self.node.entries) > 2

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
        weight = 1.0 if self.is_reused or self.is_branch_point else _UNUSED_WEIGHT
        return self.age + weight * self.num_tokens_saved / max(freed, 1)  # if all its arrays are shared, none is freed

    def window_nodes(self) -> list[Node]:
        """Returns the nodes that hold the whole blocks of its window, latest first."""
        nodes, node = [], self.node
        for _ in range(sum(len(block) == PREFILL_BLOCK for block in self.snapshot.window)):
            nodes.append(node)
            assert node.parent is not None
            node = node.parent
        return nodes


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

    def entries(self) -> Iterator[Entry]:
        """Yields every entry."""
        nodes = list(self.roots.values())
        while nodes:
            node = nodes.pop()
            nodes += node.children.values()
            yield from node.entries.values()

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
