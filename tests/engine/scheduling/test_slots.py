"""Free and used slots stay disjoint and complete, and the estimate of when one will be free."""

import hypothesis.strategies as st
import pytest
from fake_states import prefill, text
from hypothesis import given
from roost.engine.core.config import StepLimits
from roost.engine.core.request import DecodeBatch, Request
from roost.engine.prefix_cache.cache import PrefixCache
from roost.engine.prefix_cache.tree import Entry, PrefixKey
from roost.engine.scheduling.prefill_budget import PrefillBudget, StepTimes
from roost.engine.scheduling.slots import RetryAfterEstimator, SlotAssignment, SlotPool, SlotReserve
from roost.engine.scheduling.waiting_queue import WaitingQueue


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


def serve(estimator: RetryAfterEstimator, seconds: float) -> None:
    estimator.assigned(0.0)
    estimator.released(0.0, seconds)


def test_default_estimate_while_no_request_has_ended() -> None:
    assert RetryAfterEstimator(4).refused(0.0) == 1.0


def test_refused_requests_come_back_one_after_the_other() -> None:
    estimator = RetryAfterEstimator(4)
    for _ in range(10):
        serve(estimator, 8.0)  # so a slot comes free every 2 s
    assert [estimator.refused(9.0) for _ in range(3)] == pytest.approx([2, 4, 6])
    serve(estimator, 8.0)
    serve(estimator, 8.0)
    assert estimator.refused(9.0) == pytest.approx(4)


def test_latest_service_times_decide() -> None:
    estimator = RetryAfterEstimator(1)
    serve(estimator, 50.0)
    for _ in range(60):
        serve(estimator, 2.0)
    assert estimator.refused(2.0) == pytest.approx(2, rel=0.1)


def test_long_requests_are_noticed_while_they_run() -> None:
    """Short requests ended before, but the running ones have had their slots for 6 and 10 s."""
    estimator = RetryAfterEstimator(2)
    serve(estimator, 0.1)
    estimator.assigned(100.0)
    estimator.assigned(104.0)
    assert estimator.refused(110.0) == pytest.approx(4)
    estimator.released(100.0, 110.0)
    estimator.released(104.0, 110.0)
    assert estimator.refused(1000.0) == pytest.approx((0.1 + 0.99 + 0.491) / 2, rel=0.01)  # none runs any more


@given(st.integers(1, 500), st.lists(st.floats(0, 1e5), max_size=30), st.integers(1, 300), st.floats(0, 1e6))
def test_estimates_are_bounded(slots: int, times: list[float], refused: int, now: float) -> None:
    estimator = RetryAfterEstimator(slots)
    for each in times:
        serve(estimator, each)
    estimator.assigned(0.0)
    assert all(0.05 <= estimator.refused(now) <= 60 for _ in range(refused))


def test_lines_of_batches_leave_room_for_others_and_for_a_moment_after_them() -> None:
    """Beside others, four requests may run in all, as more take too long. Probes are the engine's own, and count for
    none."""
    limits = StepLimits(512, decode_rows=(4, 8))
    times, queue = StepTimes(limits), WaitingQueue(10)
    for rows, seconds in ((4, 0.01), (8, 1.0)):
        times.record(DecodeBatch((Request("a", (1,)),) * rows, tuple(range(rows))), seconds)
    slots = SlotAssignment(SlotPool(8), SlotReserve(8, 0), queue, None, None, 0, PrefillBudget(limits, times))
    slots.probes.append(Request("probe", (1,)))
    for number in range(10):
        queue.add(Request(f"line {number}", (1,), is_batch=True))
    slots.assign(0.0)
    assert slots.num_batch_running == 7
    slots.release(slots.running["probe"], 0.0)
    queue.add(Request("other", (1,)))
    assert slots.victims(can_replay=True) == []  # a slot is free
    slots.assign(0.1)
    over = slots.victims(can_replay=True)
    assert [running.request.id for running in over] == ["line 6", "line 5", "line 4", "line 3"]
    assert slots.num_batch_slots == 3
    for running in over:
        slots.preempt(running, None)
    slots.assign(0.2)
    assert (slots.num_batch_running, slots.victims(can_replay=True)) == (3, [])
    slots.release(slots.running["other"], 0.3)
    assert slots.num_batch_slots == 8, "no other request runs"
    slots.assign(0.4)
    assert slots.num_batch_running == 3
    slots.assign(0.5)
    assert slots.num_batch_running == 8


def test_a_prompt_is_looked_up_again_only_after_snapshots_were_added() -> None:
    limits, cache, tokens = StepLimits(512), PrefixCache(128, 10**9), text((1, 512))
    prefill(cache, tokens[:128])
    queue, budget = WaitingQueue(10), PrefillBudget(limits, StepTimes(limits))
    slots = SlotAssignment(SlotPool(8), SlotReserve(8, 0), queue, cache, None, 0, budget)
    queue.add(Request("a", tokens))
    slots.assign(0.0)
    running, looked_up = slots.running["a"], cache.tree.find

    def find(key: PrefixKey, *, at_block_boundary: bool) -> Entry | None:
        nonlocal num_finds
        num_finds += 1
        return looked_up(key, at_block_boundary=at_block_boundary)

    num_finds, cache.tree.find = 0, find  # type: ignore[method-assign]
    slots.extend_restored(running)
    assert (num_finds, running.num_cached) == (0, 128)
    prefill(cache, tokens[:256])
    num_finds = 0
    for _ in range(2):
        slots.extend_restored(running)
        assert (num_finds, running.num_cached) == (1, 256)
