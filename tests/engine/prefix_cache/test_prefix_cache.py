"""Tests of the prefix cache against a set of everything that was ever inserted."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from fake_states import HIDDEN_BYTES, STATE_BYTES, TOKEN_BYTES, block_states, check, left_behind, prefill, text
from hypothesis import given
from roost.engine.prefix_cache.cache import Entry, Node, PrefixCache, PrefixKey
from roost.engine.types.config import PREFILL_BLOCK
from roost.engine.types.snapshot import Snapshot, chunk_snapshots, first_block

PLENTY = 10**9


def entries(cache: PrefixCache) -> list[Entry]:
    found, nodes = [], list(cache.tree.roots.values())
    while nodes:
        node = nodes.pop()
        nodes += node.children.values()
        found += node.entries.values()
        assert node.parent is None or node.children or node.entries, "a node from which nothing hangs"
    return found


def check_counts(cache: PrefixCache) -> None:
    """Counts bytes, users and the eviction queue again."""
    kept = entries(cache)
    users: dict[Node, int] = {}
    for entry in kept:
        for node in entry.window_nodes():
            users[node] = users.get(node, 0) + 1
    arrays = {id(a): a for e in kept for a in (*e.snapshot.recurrent, *e.snapshot.window)}
    hidden = sum(0 if e.snapshot.hidden is None else e.snapshot.hidden.nbytes for e in kept)
    assert cache.stats.num_bytes == sum(a.nbytes for a in arrays.values()) + hidden
    assert all(node.num_users == count and node.window is not None for node, count in users.items())
    assert cache.stats.snapshots == len(kept)
    assert sum(entry.ticket == ticket for _, ticket, entry in cache.evictions._heap) == len(kept)
    assert all(entry.ticket for entry in kept)


KINDS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 30, 64, 128, 200])), min_size=1, max_size=5)
TRAFFIC = st.lists(st.tuples(KINDS, st.sampled_from(["", "a", "b"]), st.booleans()), min_size=1, max_size=25)


def naive_hit(seen: set[tuple[str, tuple[int, ...]]], tokens: tuple[int, ...], salt: str) -> int:
    if (salt, (*tokens, -1)) in seen:
        return len(tokens)
    lengths = range(PREFILL_BLOCK, len(tokens), PREFILL_BLOCK)
    return max((n for n in lengths if (salt, tokens[:n]) in seen), default=0)


@given(traffic=TRAFFIC, window=st.sampled_from([16, 64, 100, 128, 500]))
def test_longest_prefix_is_found_without_eviction(
    traffic: list[tuple[list[tuple[int, int]], str, bool]], window: int
) -> None:
    cache, seen = PrefixCache(window, PLENTY), set[tuple[str, tuple[int, ...]]]()
    for parts, salt, is_cut in traffic:
        tokens = text(*parts)
        spared = prefill(cache, tokens, salt, window, end=len(tokens) // 128 * 64 if is_cut else None)
        assert spared == naive_hit(seen, tokens, salt)
        end = max(spared, len(tokens) // 128 * 64) if is_cut else len(tokens)
        seen |= {(salt, tokens[:n]) for n in range(PREFILL_BLOCK, end + 1, PREFILL_BLOCK)}
        if end == len(tokens):
            seen.add((salt, (*tokens, -1)))
        check_counts(cache)


def test_snapshots_that_share_all_their_arrays_are_kept() -> None:
    """Layers of attention keep only windows, so that evicting the first of two boundaries frees nothing."""
    window, budget = 500, 250 * TOKEN_BYTES
    cache = PrefixCache(window, budget)
    for tokens in (text((1, 200)), text((2, 100))):
        states = [replace(state, recurrent=(), hidden=None) for state in block_states(tokens)]
        cache.insert(PrefixKey.of(tokens, ""), chunk_snapshots(None, states, window))
        assert cache.matched_length(PrefixKey.of(tokens, "")) == len(tokens) // PREFILL_BLOCK * PREFILL_BLOCK
        assert cache.stats.num_bytes <= budget
        check_counts(cache)


@given(traffic=TRAFFIC, window=st.sampled_from([16, 100, 128, 500]), budget=st.integers(0, 12_000))
def test_no_wrong_prefix_is_found_within_a_budget(
    traffic: list[tuple[list[tuple[int, int]], str, bool]], window: int, budget: int
) -> None:
    cache = PrefixCache(window, budget)
    for parts, salt, _ in traffic:
        prefill(cache, text(*parts), salt, window)
        assert cache.stats.num_bytes <= budget
        check_counts(cache)


@given(traffic=TRAFFIC, window=st.sampled_from([16, 64, 100, 128, 500]), budget=st.sampled_from([PLENTY, 12_000]))
def test_inexact_cache_restores_any_prefix(
    traffic: list[tuple[list[tuple[int, int]], str, bool]], window: int, budget: int
) -> None:
    """The prefix may be prefilled or generated, and blocks that snapshots share stay whole."""
    cache, seen = PrefixCache(window, budget, is_inexact=True), set[tuple[str, tuple[int, ...]]]()
    for parts, salt, is_answered in traffic:
        tokens = text(*parts)
        spared = prefill(cache, tokens, salt, window)
        known = [n for n in range(1, len(tokens)) if (salt, tokens[:n]) in seen]
        longest = len(tokens) if (salt, (*tokens, -1)) in seen else max(known, default=0)
        assert spared == longest or (budget < PLENTY and spared < longest)
        points = range(PREFILL_BLOCK, len(tokens), PREFILL_BLOCK)
        seen |= {(salt, tokens[:n]) for n in (*points, len(tokens))} | {(salt, (*tokens, -1))}
        if is_answered:
            answered = text(*parts, (9, 40 * len(parts)))
            cache.insert(PrefixKey.of(answered, salt), [left_behind(answered, window)], on_disk=False)
            seen.add((salt, answered))
        check_counts(cache)
        assert cache.stats.num_bytes <= budget


def test_exact_cache_does_not_match_generated_tokens() -> None:
    for is_inexact, spared in ((False, 64), (True, 100)):
        cache, tokens = PrefixCache(128, PLENTY, is_inexact=is_inexact), text((1, 70), (2, 30), (3, 10))
        prefill(cache, tokens[:70])
        cache.insert(PrefixKey.of(tokens[:100], ""), [left_behind(tokens[:100], 128)], on_disk=False)
        found = cache.match_prefix(PrefixKey.of(tokens, ""))
        assert found is not None
        assert found.length == spared
        at_boundary = cache.match_prefix(PrefixKey.of(tokens, ""), at_block_boundary=True)
        assert at_boundary is not None
        assert at_boundary.length == 64


def test_same_prompt_hits_whole() -> None:
    for length in (1, 63, 64, 65, 128, 4000):
        cache, tokens = PrefixCache(128, PLENTY), text((1, length))
        assert prefill(cache, tokens) == 0
        assert prefill(cache, tokens) == length


def test_hundred_shared_tokens_hit_one_block() -> None:
    cache = PrefixCache(128, PLENTY)
    prefill(cache, text((1, 100), (2, 30)))
    assert prefill(cache, text((1, 100), (3, 30))) == 64


def test_salts_separate_caches() -> None:
    cache, tokens = PrefixCache(128, PLENTY), text((1, 300))
    prefill(cache, tokens, "a")
    assert prefill(cache, tokens, "b") == 0
    assert prefill(cache, tokens, "a") == 300


def test_prefix_of_a_cached_prompt_prefills_its_last_block() -> None:
    """There is no `hidden` at that boundary to sample from."""
    cache = PrefixCache(128, PLENTY)
    prefill(cache, text((1, 300)))
    assert prefill(cache, text((1, 256))) == 192
    assert prefill(cache, text((1, 256))) == 256


def test_windows_are_stored_once() -> None:
    window, length = 2048, 4096
    cache = PrefixCache(window, PLENTY)
    prefill(cache, text((1, length)), window=window)
    count = length // PREFILL_BLOCK
    assert cache.stats.num_bytes == count * STATE_BYTES + length * TOKEN_BYTES + HIDDEN_BYTES


def budget_of(blocks: int, hidden: int) -> int:
    return blocks * (STATE_BYTES + PREFILL_BLOCK * TOKEN_BYTES) + hidden * HIDDEN_BYTES


def test_long_history_is_thinned_out_around_its_end_and_branch_points() -> None:
    """The end and the branch point stay; the boundaries between them are evicted one by one."""
    cache = PrefixCache(64, budget_of(70, 3))
    prefill(cache, text((1, 1920), (2, 64)), window=64)
    prefill(cache, text((1, 1920), (3, 64)), window=64)
    prefill(cache, text((4, 2560)), window=64)
    lengths = {e.snapshot.length for e in entries(cache) if e.node.edge[:4] == PrefixKey.of((1856 + 1000,), "").tokens}
    assert lengths == {1920}, "where texts part"
    assert prefill(cache, text((1, 1920), (2, 64), (5, 64)), window=64) == 1984
    assert prefill(cache, text((1, 1920), (3, 64), (5, 64)), window=64) == 1984
    kept = sorted(e.snapshot.length for e in entries(cache) if e.snapshot.length < 1920)
    gaps = np.diff([0, *kept])
    assert gaps.max() <= 4 * PREFILL_BLOCK, "what is left of the long texts is spread evenly"


def test_old_conversations_are_evicted_first() -> None:
    cache = PrefixCache(64, budget_of(20, 4))
    for kind in range(1, 30):
        prefill(cache, text((kind, 320)), window=64)
        assert prefill(cache, text((kind, 320)), window=64) == 320
    assert prefill(cache, text((1, 320), (40, 1)), window=64) == 0
    assert cache.stats.evictions > 100


def test_snapshot_larger_than_the_budget_is_not_kept() -> None:
    cache = PrefixCache(64, 100)
    prefill(cache, text((1, 320)), window=64)
    assert (cache.stats.num_bytes, cache.stats.snapshots, len(cache.tree.roots)) == (0, 0, 0)


@pytest.mark.parametrize("length", [1, 64, 65, 128, 1000, 2048, 2049, 5000])
@pytest.mark.parametrize("window", [16, 64, 100, 128, 2048])
def test_window_holds_the_blocks_of_the_last_tokens(length: int, window: int) -> None:
    tokens = text((1, length))
    last = chunk_snapshots(None, block_states(tokens), window)[-1]
    assert last.length == length
    assert len(last.window) == -(-length // PREFILL_BLOCK) - first_block(length, window)
    check(last, tokens, window)


@pytest.mark.parametrize("length", [1, 64, 65, 127, 128, 1000, 2049])
@pytest.mark.parametrize("window", [16, 64, 100, 128, 2048])
def test_snapshot_of_a_ring(length: int, window: int) -> None:
    """It covers the tokens that the ring still holds, cut at block boundaries."""
    tokens = (*text((1, length)), 9)
    found = left_behind(tokens[:-1], window)
    check(found, tokens, window)
    assert sum(map(len, found.window)) == min(length, window)
    assert all(len(block) == PREFILL_BLOCK for block in found.window[1:-1])


class CountedSalt(str):
    """Counts how often any dictionary hashes it."""

    __slots__ = ()
    num_hashed = 0

    def __hash__(self) -> int:
        CountedSalt.num_hashed += 1
        return super().__hash__()

    __eq__ = str.__eq__


def test_cost_of_eviction_does_not_grow_with_the_number_of_salts() -> None:
    cache, tokens = PrefixCache(64, budget_of(500, 0)), text((1, 64))
    snapshots = chunk_snapshots(None, block_states((*tokens, 1))[:1], 64)
    for number in range(500):
        cache.insert(PrefixKey.of((*tokens, 1), CountedSalt(number)), snapshots)
    before = CountedSalt.num_hashed
    for number in range(500, 600):
        cache.insert(PrefixKey.of((*tokens, 1), CountedSalt(number)), snapshots)
    assert cache.stats.snapshots <= 500
    assert cache.stats.evictions >= 100
    assert CountedSalt.num_hashed - before <= 100 * 10


def test_deferred_snapshots_are_awaited_by_look_ups_that_may_find_them() -> None:
    cache, tokens = PrefixCache(128, PLENTY), text((1, 200))
    key, other = PrefixKey.of(tokens, ""), PrefixKey.of(text((1, 63), (2, 100)), "")
    awaited: list[str] = []

    def insert() -> None:
        awaited.append("")
        cache.insert_chunk(key, None, block_states(tokens))

    before = cache.num_inserts
    cache.defer(key, 64, insert)
    assert cache.num_inserts > before
    assert cache.match_prefix(other) is None
    assert cache.match_prefix(PrefixKey.of(tokens, "salt")) is None
    assert not awaited
    assert cache.matched_length(PrefixKey.of((*tokens[:130], 9), "")) == 128
    assert cache.matched_length(key) == 200
    assert len(awaited) == 1


def test_deferred_snapshots_are_added_in_order() -> None:
    """The second chunk begins where the first has ended."""
    cache, tokens = PrefixCache(128, PLENTY), text((1, 256))
    key, last = PrefixKey.of(tokens, ""), list[Snapshot | None]([None])
    for start in (0, 128):
        states = block_states(tokens, start, start + 128)
        cache.defer(key, start + 64, lambda states=states: last.append(cache.insert_chunk(key, last[-1], states)))
    cache.settle()
    assert [None if each is None else each.length for each in last] == [None, 128, 256]
    assert cache.stats.snapshots == 4


def test_closing_adds_deferred_snapshots_before_the_disk_closes() -> None:
    log: list[str] = []
    cache = PrefixCache(128, PLENTY, ClosedTier(log))
    cache.defer(PrefixKey.of(text((1, 64)), ""), 64, lambda: log.append("inserted"))
    cache.close()
    assert log == ["inserted", "closed"]


def test_disk_closes_even_if_deferred_snapshots_are_lost() -> None:
    log: list[str] = []
    cache = PrefixCache(128, PLENTY, ClosedTier(log))
    cache.defer(PrefixKey.of(text((1, 64)), ""), 64, lambda: log.append(str(1 // 0)))
    with pytest.raises(ZeroDivisionError):
        cache.close()
    assert log == ["closed"]


class ClosedTier:
    """A tier that only notes that it is closed."""

    max_fetches = num_errors = num_bytes = 0

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def fetch(self, key: PrefixKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        raise NotImplementedError

    def store(self, key: PrefixKey, snapshots: Sequence[Snapshot]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._log.append("closed")


def test_stats() -> None:
    cache, tokens = PrefixCache(64, PLENTY), text((1, 100))
    prefill(cache, tokens)
    prefill(cache, tokens)
    stats = cache.stats
    assert (stats.queries, stats.hits, stats.hit_tokens, stats.snapshots, stats.evictions) == (2, 1, 100, 2, 0)
