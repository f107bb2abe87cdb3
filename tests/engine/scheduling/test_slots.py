"""Slots, the order and the limits of the queue for them, shares of tenants, and what of prompts is restored."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from fake_states import prefill, text
from hypothesis import given
from roost.engine.prefix_cache.cache import Entry, PrefixCache, PrefixKey
from roost.engine.scheduling.running_request import RunningRequest
from roost.engine.scheduling.slots import (
    OLDEST_EVERY,
    FairShares,
    SlotAssignment,
    SlotPool,
    WaitingQueue,
    expected_tokens,
)
from roost.engine.types.errors import QueueFullError
from roost.engine.types.request import Request
from roost.engine.types.sampling_params import SamplingParams


@given(size=st.integers(1, 8), choices=st.lists(st.integers(0, 99), max_size=60))
def test_free_and_used_are_all_slots(size: int, choices: list[int]) -> None:
    pool, used = SlotPool(size), set[int]()
    for choice in choices:
        if pool.free and (choice % 2 or not used):
            slot = pool.claim()
            assert slot == min(set(range(size)) - used)
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


TENANTS = st.sampled_from("abc")


def request(name: str, tenant: str = "", priority: int = 0, prompt: int = 1, max_tokens: int | None = 9) -> Request:
    return Request(name, (1,) * prompt, SamplingParams(max_tokens=max_tokens), tenant=tenant, priority=priority)


def queue_of(*requests: Request, max_requests: int = 10_000) -> WaitingQueue:
    queue = WaitingQueue(max_requests)
    for each in requests:
        queue.add(each)
    return queue


def pop(queue: WaitingQueue) -> Request:
    popped = queue.pop()
    assert popped is not None
    return popped


def requests_of(queue: WaitingQueue) -> list[Request]:
    return [waiting.request for waiting in queue.waiting.values()]


def drain(queue: WaitingQueue) -> list[Request]:
    return [pop(queue) for _ in range(len(queue.waiting))]


def test_first_come_first_served() -> None:
    assert [r.id for r in drain(queue_of(*(request(name) for name in "abc")))] == ["a", "b", "c"]


def test_lower_priority_numbers_go_first() -> None:
    queue = queue_of(request("a"), request("b", priority=1), request("c", priority=-1), request("d"))
    assert [r.id for r in drain(queue)] == ["c", "a", "d", "b"]


def test_oldest_request_gets_its_turn_among_urgent_ones() -> None:
    queue = queue_of(request("old", priority=5), *(request(f"new {i}") for i in range(100)))
    assert [queue.pop().id for _ in range(OLDEST_EVERY)][-1] == "old"


def test_tenants_take_turns_by_tokens() -> None:
    """Requests of b cost twice as much, so a gets two for each of them."""
    mine = [request(f"a{i}", "a", prompt=10, max_tokens=10) for i in range(40)]
    yours = [request(f"b{i}", "b", prompt=30, max_tokens=10) for i in range(40)]
    served = Counter(r.tenant for r in drain(queue_of(*mine, *yours))[:30])
    assert served == {"a": 20, "b": 10}


def test_new_tenant_is_next_however_many_requests_wait() -> None:
    queue = queue_of(*(request(f"a{i}", "a") for i in range(1000)))
    for _ in range(300):
        queue.pop()
    queue.add(request("b0", "b"))
    queue.add(request("b1", "b"))
    assert [queue.pop().tenant for _ in range(4)] in (list("baba"), list("abab"))


def test_tenant_is_not_compensated_for_a_pause() -> None:
    queue = queue_of(*(request(f"a{i}", "a") for i in range(100)), request("b", "b"))
    for _ in range(50):
        queue.pop()
    for i in range(50):
        queue.add(request(f"b{i}", "b"))
    served = Counter(queue.pop().tenant for _ in range(20))
    assert served == {"a": 10, "b": 10}


def test_expected_costs_are_corrected() -> None:
    """Requests of a turn out to cost a tenth, so a gets more of them."""
    queue = queue_of(*(request(f"{t}{i}", t, max_tokens=99) for i in range(60) for t in "ab"))
    served: Counter[str] = Counter()
    for _ in range(44):
        popped = pop(queue)
        served[popped.tenant] += 1
        queue.correct_cost(popped, 10 if popped.tenant == "a" else 100)
    assert served == {"a": 40, "b": 4}


def test_expected_cost_is_bounded() -> None:
    assert expected_tokens(request("a", prompt=5, max_tokens=7)) == 12
    assert expected_tokens(request("a", prompt=5, max_tokens=None)) == expected_tokens(
        request("a", prompt=5, max_tokens=10**6)
    )


def test_queue_is_bounded_in_requests() -> None:
    queue = queue_of(request("a"), request("b"), max_requests=2)
    assert queue.refusal(request("c")) == "the queue is full (2 requests wait); try again later"
    queue.remove("a")
    assert queue.refusal(request("c")) is None


def test_queue_is_bounded_in_tokens() -> None:
    queue = WaitingQueue(100, max_tokens=10)
    queue.add(request("a", prompt=6))
    assert queue.refusal(request("b", prompt=5)) == "the queue is full (6 tokens of prompts wait); try again later"
    assert queue.refusal(request("b", prompt=4)) is None


def test_single_tenant_may_fill_the_queue() -> None:
    queue = queue_of(*(request(str(i), "a") for i in range(9)), max_requests=10)
    assert queue.refusal(request("9", "a")) is None


@given(asked=st.lists(TENANTS, max_size=60), max_requests=st.integers(3, 30))
def test_queue_has_room_for_another_tenant(asked: list[str], max_requests: int) -> None:
    """Whatever other tenants have queued, a tenant without waiting requests gets in."""
    queue = WaitingQueue(max_requests, tenants=3)
    for number, tenant in enumerate(asked):
        each = request(str(number), tenant)
        if queue.refusal(each) is None:
            queue.add(each)
        else:
            present = {r.tenant for r in requests_of(queue)}
            assert tenant in present or len(present) + 1 >= max_requests
        waiting = Counter(r.tenant for r in requests_of(queue))
        assert sum(waiting.values()) <= max_requests
        assert len(waiting) < 2 or max(waiting.values()) <= max_requests - min(waiting.values())


ARRIVALS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "pop", "remove"]), TENANTS, st.integers(-2, 2), st.integers(1, 50)),
    max_size=80,
)


@given(ARRIVALS)
def test_no_request_is_lost_and_order_holds(events: list[tuple[str, str, int, int]]) -> None:
    """Sizes are right after any events; among requests of one tenant and priority, the older goes first."""
    queue, alive, number = WaitingQueue(1000), dict[str, Request](), 0
    for kind, tenant, priority, prompt in events:
        if kind == "add":
            each = request(f"{number:03}", tenant, priority, prompt)
            queue.add(each)
            alive[each.id], number = each, number + 1
        elif kind == "remove" and alive:
            victim = sorted(alive)[prompt % len(alive)]
            assert queue.remove(victim)
            assert not queue.remove(victim)
            del alive[victim]
        elif kind == "pop" and alive:
            popped = alive.pop(queue.pop().id)
            peers = [r for r in alive.values() if (r.tenant, r.priority) == (popped.tenant, popped.priority)]
            assert all(popped.id < peer.id for peer in peers)
        assert len(queue.waiting) == len(alive)
        assert sorted(r.id for r in requests_of(queue)) == sorted(alive)
        assert queue.num_tokens == sum(len(r.prompt_token_ids) for r in alive.values())
    assert {r.id for r in drain(queue)} == set(alive)


@given(st.lists(st.tuples(TENANTS, st.integers(1, 40)), min_size=1, max_size=100), st.integers(0, 60))
def test_tenants_that_always_wait_get_equal_shares(work: list[tuple[str, int]], num_before: int) -> None:
    """While two tenants both have waiting requests, their shares differ by at most two requests."""
    queue = queue_of(*(request(str(i), tenant, prompt=prompt) for i, (tenant, prompt) in enumerate(work)))
    most = 2 * max(prompt + 9 for _, prompt in work)
    for _ in range(min(num_before, len(queue.waiting))):
        queue.pop()
    waiting = Counter(r.tenant for r in requests_of(queue))
    had: Counter[str] = Counter()
    while queue.waiting:
        popped = pop(queue)
        had[popped.tenant] += expected_tokens(popped)
        waiting[popped.tenant] -= 1
        still = [tenant for tenant in "abc" if waiting[tenant]]
        assert max((had[t] for t in still), default=0) - min((had[t] for t in still), default=0) <= most


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=50), st.integers(0, 49))
def test_no_request_starves(priorities: list[int], place: int) -> None:
    """Each request gets its turn while more urgent ones keep arriving: one pop in `OLDEST_EVERY` is the oldest's."""
    queue = queue_of(*(request(str(i), priority=p) for i, p in enumerate(priorities)))
    wanted, pops = str(place % len(priorities)), 0
    while wanted in queue.waiting:
        queue.add(request(f"urgent {pops}", priority=-3))
        queue.pop()
        pops += 1
    assert pops <= OLDEST_EVERY * len(priorities)


def test_a_tenant_without_waiting_requests_may_be_charged() -> None:
    shares = FairShares()
    shares.charge("a", 5)
    shares.enter("b")
    shares.enter("a")
    assert shares.first(["a", "b"]) == "b"


class Refusing:
    """Slots of a queue that has no room. Each request is refused with the seconds after which it should come again."""

    def __init__(self, slots: int) -> None:
        self.queue = WaitingQueue(0)
        self.slots = SlotAssignment(SlotPool(slots), self.queue)
        self._num_requests = 0

    def start(self, now: float) -> RunningRequest:
        self._num_requests += 1
        name = f"running {self._num_requests}"
        self.queue.add(request(name))
        self.slots.assign(now)
        return self.slots.running[name]

    def serve(self, seconds: float) -> None:
        """Serves a request beside those that run."""
        self.slots.release(self.start(0.0), seconds)

    def refused(self, now: float) -> float:
        """Returns when a request is to come again that finds all slots in use by requests that come later."""
        waiting = request("waiting")
        blockers = [self.slots.pool.claim() for _ in self.slots.pool.free.copy()]
        with pytest.raises(QueueFullError) as refusal:
            self.slots.add(waiting, now)
        for slot in blockers:
            self.slots.pool.release(slot)
        return refusal.value.retry_after_s


def test_default_estimate_while_no_request_has_ended() -> None:
    assert Refusing(4).refused(0.0) == 1.0


def test_refused_requests_come_back_one_after_the_other() -> None:
    refusing = Refusing(4)
    other = refusing.start(0.0)
    for _ in range(10):
        refusing.serve(8.0)  # so a slot comes free every 2 s
    assert [refusing.refused(8.0) for _ in range(3)] == pytest.approx([2, 4, 6])
    refusing.serve(8.0)
    refusing.serve(8.0)
    assert refusing.refused(8.0) == pytest.approx(4)
    refusing.slots.release(other, 8.0)
    assert refusing.refused(8.0) == pytest.approx(2), "those that return now get a slot"


def test_latest_service_times_decide() -> None:
    refusing = Refusing(1)
    refusing.serve(50.0)
    for _ in range(60):
        refusing.serve(2.0)
    assert refusing.refused(2.0) == pytest.approx(2, rel=0.1)


def test_long_requests_are_noticed_while_they_run() -> None:
    """Short requests ended before, but the running ones have had their slots for 6 and 10 s."""
    refusing = Refusing(2)
    refusing.serve(0.1)
    running = [refusing.start(100.0), refusing.start(104.0)]
    assert refusing.refused(110.0) == pytest.approx(4)
    for each in running:
        refusing.slots.release(each, 110.0)
    assert refusing.refused(1000.0) == pytest.approx((0.1 + 0.99 + 0.491) / 2, rel=0.01)  # none runs any more


@given(st.integers(1, 50), st.lists(st.floats(0, 1e5), max_size=30), st.integers(1, 60), st.floats(0, 1e6))
def test_estimates_are_bounded(slots: int, times: list[float], refused: int, now: float) -> None:
    refusing = Refusing(slots)
    for each in times:
        refusing.serve(each)
    refusing.start(0.0)
    assert all(0.05 <= refusing.refused(now) <= 60 for _ in range(refused))
