"""States whose arrays say which tokens they stand for, and a reader that uses a cache as the engine does."""

import queue
from itertools import pairwise

import numpy as np
from roost.engine.core.config import PREFILL_BLOCK
from roost.engine.core.snapshot import BlockState, Snapshot, SnapshotFormat, chunk_snapshots, from_ring, ring_rows
from roost.engine.prefix_cache.cache import PrefixCache
from roost.engine.prefix_cache.prefix_key import PrefixKey

STATE_BYTES, TOKEN_BYTES, HIDDEN_BYTES = 400, 4, 40


def text(*parts: tuple[int, int]) -> tuple[int, ...]:
    """Tokens: so many of each kind, numbered so that no two blocks are alike by accident."""
    return tuple(1000 * kind + i for kind, count in parts for i in range(count))


def number(tokens: tuple[int, ...]) -> int:
    """Stands for them."""
    return hash(tokens) & 0x7FFFFFFF


def block_state(tokens: tuple[int, ...], start: int, end: int, *, is_end: bool) -> BlockState:
    """Arrays that say which tokens they stand for."""
    h, conv = (np.full(STATE_BYTES // 8, number(tokens[:end]), np.int32) for _ in range(2))
    window = np.array([number(tokens[: i + 1]) for i in range(start, end)], np.int32)
    return BlockState((h, conv), window, np.full(HIDDEN_BYTES // 4, number(tokens[:end]), np.int32) if is_end else None)


def block_states(tokens: tuple[int, ...], start: int = 0, end: int | None = None) -> list[BlockState]:
    """At every block boundary and at the end."""
    end = len(tokens) if end is None else end
    next_point = start // PREFILL_BLOCK * PREFILL_BLOCK + PREFILL_BLOCK
    edges = [start, *range(next_point, end, PREFILL_BLOCK), end]
    return [block_state(tokens, a, b, is_end=b == len(tokens)) for a, b in pairwise(edges) if a < b]


def format_of(window: int) -> SnapshotFormat:
    return SnapshotFormat(
        window,
        ((STATE_BYTES // 8,), "int32"),
        ((STATE_BYTES // 8,), "int32"),
        ((), "int32"),
        ((HIDDEN_BYTES // 4,), "int32"),
    )


def fetch(cache: PrefixCache, key: PrefixKey) -> Snapshot | None:
    """Waits for what the tier below finds, if it is to be asked."""
    known = cache.matched_length(key)
    if not cache.max_fetches or known == len(key):
        return None
    found: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
    cache.fetch(key, known, found.put)
    return found.get(timeout=60)


def read(cache: PrefixCache, tokens: tuple[int, ...], salt: str = "", window: int = 128, cut: int | None = None) -> int:
    """Does what the engine does with a prompt, up to a token where it is cut off; gives how many tokens were spared."""
    key = PrefixKey.of(tokens, salt)
    found = cache.match_prefix(key, fetch(cache, key))
    if found is not None:
        check(found, tokens, window)
    length = 0 if found is None else found.length
    if length < len(tokens):
        cache.insert(key, chunk_snapshots(found, block_states(tokens, length, cut), window))
    return length


def left_behind(tokens: tuple[int, ...], window: int) -> Snapshot:
    """What a slot holds that has read these tokens, the last of them one by one."""
    last = chunk_snapshots(None, block_states(tokens), window)[-1]
    return from_ring(len(tokens), last.recurrent, ring_rows(last, window))


def check(found: Snapshot, tokens: tuple[int, ...], window: int) -> None:
    """A snapshot is of these tokens and of no others, and so is every row of its ring."""
    length = found.length
    assert all((array == number(tokens[:length])).all() for array in found.recurrent)
    assert length < len(tokens) or found.hidden is not None
    ring = ring_rows(found, window)
    for position in range(max(0, length - window), length):
        assert ring[position % window] == number(tokens[: position + 1])
    assert not ring[length:].any()
