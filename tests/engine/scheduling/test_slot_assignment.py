"""Which requests get slots, and what of their prompts is restored."""

from fake_states import prefill, text
from roost.engine.prefix_cache.cache import Entry, PrefixCache, PrefixKey
from roost.engine.scheduling.slots import SlotAssignment, SlotPool, SlotReserve
from roost.engine.scheduling.waiting_queue import WaitingQueue
from roost.engine.types.request import Request


def test_a_prompt_is_looked_up_again_only_after_snapshots_were_added() -> None:
    cache, tokens = PrefixCache(128, 10**9), text((1, 512))
    prefill(cache, tokens[:128])
    queue = WaitingQueue(10)
    slots = SlotAssignment(SlotPool(8), SlotReserve(8, 0), queue, cache, None, 0)
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
