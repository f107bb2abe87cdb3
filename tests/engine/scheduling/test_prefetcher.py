"""Requests that wait until their prompts were searched for on disk."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from fake_states import block_states, text
from roost.engine.prefix_cache.cache import PrefixCache, PrefixKey
from roost.engine.scheduling.prefetcher import Fetch
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import StepLimits
from roost.engine.types.errors import QueueFullError
from roost.engine.types.request import DecodeBatch, Request, RowResult
from roost.engine.types.sampling_params import SamplingParams
from roost.engine.types.snapshot import Snapshot, chunk_snapshots

LIMITS = StepLimits(512, itl_target_s=0.0)
WINDOW = 128


class Tier:
    """Empty disk tier that limits the number of searches; the scheduler must not search it itself."""

    num_bytes = num_errors = 0

    def __init__(self, max_fetches: int = 8) -> None:
        self.max_fetches = max_fetches

    def fetch(self, prompt: PrefixKey, above: int, done: Callable[[Snapshot | None], None]) -> None:
        raise AssertionError("a scheduler touches no disk")

    def store(self, prompt: PrefixKey, snapshots: object) -> None: ...

    def close(self) -> None: ...


def make(slots: int = 1, max_queue: int = 100, max_fetches: int = 8, tenants: int = 1) -> tuple[Scheduler, PrefixCache]:
    cache = PrefixCache(WINDOW, 10**9, Tier(max_fetches))
    return Scheduler(slots, max_queue, LIMITS, tenants=tenants, cache=cache), cache


def request(name: str, length: int = 300, kind: int = 1, **fields: object) -> Request:
    return Request(name, text((kind, length)), SamplingParams(max_tokens=1), **fields)  # type: ignore[arg-type]


def state(each: Request, length: int = 256) -> Snapshot:
    """Returns the snapshot of a request's first tokens."""
    return chunk_snapshots(None, block_states(each.prompt_token_ids, end=length), WINDOW)[-1]


def ids(fetches: list[Fetch]) -> list[str]:
    return [fetch.request.id for fetch in fetches]


def fetches(scheduler: Scheduler, now: float = 0.0) -> list[Fetch]:
    """Returns the searches of a plan, which has no batch."""
    plan = scheduler.schedule(now)
    assert plan.batch is None
    return list(plan.fetches)


def run(scheduler: Scheduler, now: float = 0.0) -> tuple[list[tuple[str, int]], list[Fetch]]:
    """Runs all requests that are not held.

    Returns:
      Who began in which order, with how many tokens that were spared; and the searches of all plans.
    """
    begun, planned = [], []
    while True:
        plan = scheduler.schedule(now)
        planned += plan.fetches
        if plan.batch is None:
            return begun, planned
        assert not isinstance(plan.batch, DecodeBatch)
        done = []
        for chunk in plan.batch.chunks:
            length = chunk.start + chunk.length
            left = partial(partial, block_states, chunk.request.prompt_token_ids, chunk.start, length)
            done.append(RowResult(block_states=left if chunk.length else None))
        done += [RowResult((7,)) for _ in plan.batch.first_tokens]
        begun += [(name, output.num_cached) for name, output in scheduler.commit(plan.batch, done, 1.0).outputs]


def test_request_waits_for_its_search_and_restores_the_result() -> None:
    scheduler, cache = make()
    scheduler.add(one := request("a"), 0.0)
    (fetch,) = fetches(scheduler)
    assert (fetch.request, fetch.above) == (one, 0)
    assert fetches(scheduler) == []
    assert (len(scheduler.queue.waiting), len(scheduler.running)) == (1, 0)
    scheduler.commit_fetch(fetch, state(one))
    assert run(scheduler) == ([("a", 256)], [])
    assert cache.stats.disk_hits == 1
    assert scheduler.next_timeout == math.inf


def test_request_without_a_search_is_not_held() -> None:
    """The prompt is in memory, or has to be prefilled in any case."""
    scheduler, cache = make(slots=2)
    known = request("known", kind=2)
    cache.insert(
        PrefixKey.of(known.prompt_token_ids, ""), chunk_snapshots(None, block_states(known.prompt_token_ids), WINDOW)
    )
    scored = request("scored", kind=3)
    scheduler.add(request("a"), 0.0)
    scheduler.add(known, 0.0)
    scheduler.add(replace(scored, params=SamplingParams(max_tokens=1, prompt_logprobs=0)), 0.0)
    begun, planned = run(scheduler)
    assert ids(planned) == ["a"]
    assert begun == [("known", 300), ("scored", 0)]
    assert len(scheduler.queue.waiting) == 1


def test_held_requests_keep_their_places() -> None:
    scheduler, _ = make()
    for index, name in enumerate("abc"):
        scheduler.add(request(name, kind=index + 1), 0.0)
    planned = fetches(scheduler)
    assert ids(planned) == ["a", "b", "c"]
    for fetch in (planned[1], planned[2], planned[0]):
        scheduler.commit_fetch(fetch, None)
    assert [name for name, _ in run(scheduler)[0]] == ["a", "b", "c"]


def test_queued_requests_find_a_prefix_that_another_has_prefilled() -> None:
    """The first of them prefills it, after the searches of all have found nothing."""
    scheduler, _ = make(max_fetches=64)
    for index in range(32):
        scheduler.add(Request(str(index), text((1, 256), (index + 2, 20)), SamplingParams(max_tokens=1)), 0.0)
    planned = fetches(scheduler)
    assert len(planned) == 32
    for fetch in planned:
        scheduler.commit_fetch(fetch, None)
    assert run(scheduler) == ([("0", 0), *((str(index), 256) for index in range(1, 32))], [])


def test_prefix_that_reached_memory_is_not_searched_for() -> None:
    """One search runs at a time; the second one begins before the first prompt is prefilled."""
    scheduler, _ = make(max_fetches=2)
    for index in range(3):
        scheduler.add(request(str(index)), 0.0)
    (first,) = fetches(scheduler)
    scheduler.commit_fetch(first, None)
    begun, (second,) = run(scheduler)
    assert begun == [("0", 0)]
    scheduler.commit_fetch(second, None)
    assert run(scheduler) == ([("1", 300), ("2", 300)], [])


def test_queue_limit_holds_while_requests_wait_for_searches() -> None:
    """Slots are free, but the requests still count as waiting."""
    scheduler, _ = make(slots=2, max_queue=4)
    for index in range(4):
        scheduler.add(request(str(index), kind=index + 1), 0.0)
    with pytest.raises(QueueFullError, match="the queue is full"):
        scheduler.add(request("4", kind=5), 0.0)
    assert len(scheduler.queue.waiting) == 4


def test_timeouts_and_aborts_during_a_search() -> None:
    scheduler, _ = make()
    scheduler.add(request("late", start_by=3.0), 0.0)
    scheduler.add(request("left", kind=2), 0.0)
    planned = fetches(scheduler)
    assert [name for name, _ in scheduler.schedule(4.0).failed] == ["late"]
    assert scheduler.abort("left")
    assert scheduler.next_timeout == math.inf
    scheduler.add(again := request("left", kind=3), 0.0)
    for fetch in planned:
        scheduler.commit_fetch(fetch, state(fetch.request))
    (fetch,) = fetches(scheduler)  # what was found is another request's, of the same id
    assert fetch.request is again
    scheduler.commit_fetch(fetch, None)
    assert run(scheduler) == ([("left", 0)], [])


def test_forks_share_one_search_and_one_prefill() -> None:
    scheduler, _ = make(slots=8)
    for index in range(8):
        scheduler.add(request(str(index), fork_of=None if index == 0 else "0"), 0.0)
    (fetch,) = fetches(scheduler)
    scheduler.commit_fetch(fetch, state(fetch.request))
    batch = scheduler.schedule(0.0).batch
    assert batch is not None
    assert not isinstance(batch, DecodeBatch)
    assert [len(chunk.forks) for chunk in batch.chunks] == [7]
    assert batch.chunks[0].start == 256


def test_forks_are_released_when_their_parent_is_aborted() -> None:
    scheduler, _ = make(slots=8)
    for index in range(3):
        scheduler.add(request(str(index), fork_of=None if index == 0 else "0"), 0.0)
    fetches(scheduler)
    scheduler.abort("0")
    assert sorted(name for name, _ in run(scheduler)[0]) == ["1", "2"]


def test_one_tenant_gets_half_of_the_searches() -> None:
    scheduler, _ = make(max_fetches=8, tenants=3)
    for index in range(20):
        scheduler.add(request(f"a{index}", kind=index + 1, tenant="a"), 0.0)
    assert len(fetches(scheduler)) == 4
    for index in range(3):
        scheduler.add(request(f"b{index}", kind=index + 30, tenant="b"), 0.0)
    scheduler.add(request("c", kind=40, tenant="c"), 0.0)
    assert sorted(ids(fetches(scheduler))) == ["b0", "c"]


def test_found_snapshots_count_until_they_are_restored() -> None:
    """Snapshots are large, so only a few may be held for a long queue."""
    scheduler, _ = make(max_fetches=4)
    for index in range(20):
        scheduler.add(request(str(index), kind=index + 1), 0.0)
    found, order = 0, []
    for _ in range(21):
        plan = scheduler.schedule(0.0)
        for fetch in plan.fetches:
            scheduler.commit_fetch(fetch, state(fetch.request))
            found += 1
        if plan.batch is not None:
            assert not isinstance(plan.batch, DecodeBatch)
            order += [row.request.id for row in plan.batch.first_tokens]
            scheduler.commit(plan.batch, [RowResult(), RowResult((7,))], 1.0)
        assert found - len(order) <= 2
    assert order == [str(index) for index in range(20)]


def test_searches_of_aborted_requests_count_until_they_end() -> None:
    """Requests that are sent and aborted do not pile up searches."""
    scheduler, _ = make(max_fetches=4)
    begun = []
    for index in range(100):
        scheduler.add(request(str(index), kind=index + 1), 0.0)
        begun += fetches(scheduler)
        scheduler.abort(str(index))
    assert len(begun) == 2
    scheduler.add(request("next"), 0.0)
    assert fetches(scheduler) == []
    for fetch in begun:
        scheduler.commit_fetch(fetch, None)
    assert ids(fetches(scheduler)) == ["next"]


def test_requests_do_not_wait_for_a_disk_that_hangs() -> None:
    scheduler, _ = make(max_fetches=4)
    for index in range(6):
        scheduler.add(request(str(index), kind=index + 1), 100.0)
    hanging = fetches(scheduler, 100.0)
    until = scheduler.next_timeout
    assert until is not None
    assert 101 < until < 120
    begun, planned = run(scheduler, until)
    assert planned == []
    assert [name for name, _ in begun] == [str(index) for index in range(6)]
    scheduler.add(request("new", kind=20), until)
    assert run(scheduler, until) == ([("new", 0)], []), "nobody else waits for it, until it comes back"
    for fetch in hanging:
        scheduler.commit_fetch(fetch, state(fetch.request))
    assert fetches(scheduler, until) == []
    scheduler.add(request("later", kind=21), until)
    assert ids(fetches(scheduler, until)) == ["later"]


def test_searches_follow_priorities() -> None:
    scheduler, _ = make(max_fetches=4)
    for index in range(5):
        scheduler.add(request(str(index), kind=index + 1), 0.0)
    scheduler.add(request("urgent", kind=20, priority=-1), 0.0)
    assert ids(fetches(scheduler)) == ["urgent", "0"]


def test_only_snapshots_longer_than_the_requests_own_are_searched_for() -> None:
    scheduler, _ = make()
    one = request("a")
    scheduler.add(replace(one, state=state(one)), 0.0)
    (fetch,) = fetches(scheduler)
    assert fetch.above == 256
    scheduler.commit_fetch(fetch, None)
    assert run(scheduler) == ([("a", 256)], [])
