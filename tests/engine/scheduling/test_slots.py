"""Free and used slots, which requests get one, and what of their prompts is restored."""

import hypothesis.strategies as st
import pytest
from fake_states import prefill, text
from hypothesis import given
from roost.engine.prefix_cache.cache import Entry, PrefixCache, PrefixKey
from roost.engine.scheduling.slots import SlotAssignment, SlotPool, WaitingQueue
from roost.engine.types.request import Request


def test_claims_the_lowest_free_slot() -> None:
    pool = SlotPool(3)
    assert [pool.claim(), pool.claim(), pool.claim()] == [0, 1, 2]
    pool.release(1)
    pool.release(0)
    assert pool.claim() == 0


def test_claim_from_an_empty_pool_raises() -> None:
    pool = SlotPool(1)
    pool.claim()
    with pytest.raises(IndexError):
        pool.claim()


@given(size=st.integers(1, 8), choices=st.lists(st.integers(0, 99), max_size=60))
def test_free_and_used_are_all_slots(size: int, choices: list[int]) -> None:
    pool, used = SlotPool(size), set[int]()
    for choice in choices:
        if pool.free and (choice % 2 or not used):
            slot = pool.claim()
            assert slot not in used
            assert 0 <= slot < size
            used.add(slot)
        else:
            slot = sorted(used)[choice % len(used)]
            pool.release(slot)
            used.remove(slot)
        assert sorted([*used, *pool.free]) == list(range(size))


def test_slots_are_claimed_in_the_given_order() -> None:
    pool = SlotPool(3, (4, 0, 2))
    assert [pool.claim(), pool.claim()] == [4, 0]
    pool.release(4)
    pool.release(0)
    assert [pool.claim() for _ in range(3)] == [4, 0, 2]


def test_a_prompt_is_looked_up_again_only_after_snapshots_were_added() -> None:
    cache, tokens = PrefixCache(128, 10**9), text((1, 512))
    prefill(cache, tokens[:128])
    queue = WaitingQueue(10)
    slots = SlotAssignment(SlotPool(8), queue, cache)
    queue.add(Request("a", tokens))
    slots.assign(0.0)
    running, looked_up = slots.running["a"], cache.tree.find

    def find(key: PrefixKey, *, at_block_boundary: bool) -> Entry | None:
        nonlocal num_finds
        num_finds += 1
        return looked_up(key, at_block_boundary=at_block_boundary)

    num_finds, cache.tree.find = 0, find
    slots.extend_restored(running)
    assert (num_finds, running.num_cached) == (0, 128)
    prefill(cache, tokens[:256])
    num_finds = 0
    for _ in range(2):
        slots.extend_restored(running)
        assert (num_finds, running.num_cached) == (1, 256)
