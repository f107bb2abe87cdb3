"""Free and used slots stay disjoint and complete."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from roost.engine.scheduling.slots import SlotPool


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


@pytest.mark.parametrize("slot", [0, 1, -1, 7])
def test_releasing_a_free_or_unknown_slot_raises(slot: int) -> None:
    with pytest.raises(ValueError, match="not in use"):
        SlotPool(2).release(slot)


def test_releasing_twice_raises() -> None:
    pool = SlotPool(2)
    slot = pool.claim()
    pool.release(slot)
    with pytest.raises(ValueError, match="not in use"):
        pool.release(slot)


@given(size=st.integers(1, 8), choices=st.lists(st.integers(0, 99), max_size=60))
def test_free_and_used_are_all_slots(size: int, choices: list[int]) -> None:
    pool, used = SlotPool(size), set[int]()
    for choice in choices:
        if pool.num_free and (choice % 2 or not used):
            slot = pool.claim()
            assert slot not in used
            assert 0 <= slot < size
            used.add(slot)
        else:
            slot = sorted(used)[choice % len(used)]
            pool.release(slot)
            used.remove(slot)
        assert pool.num_used == len(used)
        assert pool.num_free + pool.num_used == size


def test_slots_are_claimed_in_the_given_order() -> None:
    pool = SlotPool(3, (4, 0, 2))
    assert [pool.claim(), pool.claim()] == [4, 0]
    pool.release(4)
    pool.release(0)
    assert [pool.claim() for _ in range(3)] == [4, 0, 2]
