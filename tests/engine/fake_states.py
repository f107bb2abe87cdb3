"""States whose arrays say which tokens they stand for, and prefill with a prefix cache as the engine does it."""

import queue
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from roost.engine.prefix_cache.cache import PrefixCache, PrefixKey
from roost.engine.types.config import PREFILL_BLOCK
from roost.engine.types.snapshot import (
    BlockState,
    Snapshot,
    SnapshotFormat,
    chunk_snapshots,
    snapshot_of,
)
from roost.engine.worker.transfer import window_rows

STATE_BYTES, TOKEN_BYTES, HIDDEN_BYTES = 400, 4, 40


def text(*parts: tuple[int, int]) -> tuple[int, ...]:
    """Returns tokens of several kinds, numbered so that no two blocks are alike by accident.

    Args:
      parts: Pairs of kind and number of tokens.
    """
    return tuple(1000 * kind + i for kind, count in parts for i in range(count))


def number(tokens: Sequence[int]) -> int:
    """Returns a number that stands for some tokens."""
    return hash(tuple(tokens)) & 0x7FFFFFFF


def block_state(tokens: Sequence[int], start: int, end: int, *, is_end: bool) -> BlockState:
    """Returns a state whose arrays say which tokens they stand for."""
    h, conv = (np.full(STATE_BYTES // 8, number(tokens[:end]), np.int32) for _ in range(2))
    window = np.array([number(tokens[: i + 1]) for i in range(start, end)], np.int32)
    return BlockState((h, conv), window, np.full(HIDDEN_BYTES // 4, number(tokens[:end]), np.int32) if is_end else None)


def block_states(tokens: Sequence[int], start: int = 0, end: int | None = None) -> list[BlockState]:
    """Returns the states at every block boundary and at the end."""
    end = len(tokens) if end is None else end
    next_boundary = start // PREFILL_BLOCK * PREFILL_BLOCK + PREFILL_BLOCK
    edges = [start, *range(next_boundary, end, PREFILL_BLOCK), end]
    return [block_state(tokens, a, b, is_end=b == len(tokens)) for a, b in pairwise(edges) if a < b]


def format_of(window: int) -> SnapshotFormat:
    return SnapshotFormat(
        window,
        dict.fromkeys(("h", "conv"), ((STATE_BYTES // 8,), "int32")),
        ((), "int32"),
        ((HIDDEN_BYTES // 4,), "int32"),
    )


def fetch(cache: PrefixCache, key: PrefixKey) -> Snapshot | None:
    """Returns the snapshot that the disk tier finds, if it has to be searched."""
    known = cache.matched_length(key)
    if cache.disk is None or known == len(key):
        return None
    found: queue.SimpleQueue[Snapshot | None] = queue.SimpleQueue()
    cache.disk.fetch(key, known, found.put)
    return found.get(timeout=60)


def prefill(
    cache: PrefixCache, tokens: Sequence[int], salt: str = "", window: int = 128, end: int | None = None
) -> int:
    """Restores and prefills a prompt as the engine does, up to token `end`; returns the number of restored tokens."""
    key = PrefixKey.of(tokens, salt)
    found = cache.match_prefix(key, fetch(cache, key))
    if found is not None:
        check(found, tokens, window)
    length = 0 if found is None else found.length
    if length < len(tokens):
        cache.insert(key, chunk_snapshots(found, block_states(tokens, length, end), window))
    return length


def left_behind(tokens: Sequence[int], window: int) -> Snapshot:
    """Returns the snapshot of a slot whose last tokens were decoded one by one."""
    last = chunk_snapshots(None, block_states(tokens), window)[-1]
    return snapshot_of(len(tokens), last.recurrent, window_rows(last, window))


def check(found: Snapshot, tokens: Sequence[int], window: int) -> None:
    """Checks that a snapshot and every row of its ring stand for these tokens."""
    length = found.length
    assert all((array == number(tokens[:length])).all() for array in found.recurrent)
    assert length < len(tokens) or found.hidden is not None
    ring = window_rows(found, window)
    for position in range(max(0, length - window), length):
        assert ring[position % window] == number(tokens[: position + 1])
    assert not ring[length:].any()
