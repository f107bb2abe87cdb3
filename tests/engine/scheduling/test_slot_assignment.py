"""Which requests get slots, and what of their prompts is restored."""

from fake_states import prefill, text
from roost.engine.core.config import StepLimits
from roost.engine.core.request import DecodeBatch, Request
from roost.engine.prefix_cache.cache import PrefixCache
from roost.engine.prefix_cache.tree import Entry, PrefixKey
from roost.engine.scheduling.prefill_budget import PrefillBudget, StepTimes
from roost.engine.scheduling.slot_assignment import SlotAssignment
from roost.engine.scheduling.slots import SlotPool, SlotReserve
from roost.engine.scheduling.waiting_queue import WaitingQueue


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
