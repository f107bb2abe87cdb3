"""Slots: which are free, which requests get them, and when one will be free for a refused request.

A slot is a row of the state pool, named by its index.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from itertools import islice
from typing import Final

from ..core.errors import ConfigError, QueueFullError, RequestFailedError, RoostError
from ..core.request import Request, error_output
from ..core.snapshot import Snapshot
from ..prefix_cache.cache import PrefixCache
from ..prefix_cache.tree import PrefixKey
from .plan import RequestOutput
from .prefetcher import Fetch, Prefetcher
from .prefill_budget import PrefillBudget
from .running_request import RunningRequest
from .token_constraint import TokenConstraint
from .waiting_queue import Waiting, WaitingQueue

_WEIGHT: Final = 0.1
"""Weight of the latest service time in the moving average: about the last twenty requests count."""

_UNKNOWN_S: Final = 1.0
"""Estimate while no request has ended."""

_SHORTEST_S: Final = 0.05
_LONGEST_S: Final = 60.0
"""Bounds of the estimate. Load changes within a minute, and clients don't wait for longer."""

_MAX_PREEMPTIONS: Final = 8
"""Maximum number of slots that batch requests give up in one step, since the states are copied to the host."""

_LINGER_S: Final = 0.25
"""Seconds for which batch requests leave room for others that have ended, since the next ones often follow at once."""

_NO_MEMORY: Final = (
    "a request with precedence got the slot of this line of a batch, whose state has no room in host memory; "
    "give --state-cache-gib more memory"
)

_NOT_STARTED: Final = "the engine could not start the request; others are not affected"


class SlotPool:
    """Hands out the first free slot in a fixed order, so that slots in use stay close together.

    Free and used slots are disjoint, and together they are all slots.

    Args:
      size: Number of slots.
      order: All slots, the first to be taken in front; None stands for ascending order.
    """

    def __init__(self, size: int, order: Sequence[int] | None = None) -> None:
        self.size = size
        self._order = range(size) if order is None else order
        self._rank = {slot: rank for rank, slot in enumerate(self._order)}
        self._free = list(range(size))
        self._used: set[int] = set()
        self._pinned: set[int] = set()
        self._retained: set[int] = set()

    def __repr__(self) -> str:
        return f"SlotPool(size={self.size}, used={sorted(self._used)})"

    @property
    def num_free(self) -> int:
        """Number of slots without an owner."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Number of slots with an owner, and of retained slots."""
        return len(self._used)

    @property
    def retained(self) -> frozenset[int]:
        """Slots that were released while they were pinned."""
        return frozenset(self._retained)

    def rank(self, slot: int) -> int:
        """Returns the place of a slot in the order."""
        return self._rank[slot]

    def claim(self) -> int:
        """Takes the first free slot.

        Raises:
          IndexError: No slot is free.
        """
        slot = self._order[heapq.heappop(self._free)]
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Gives a slot back; a pinned one is retained until `unpin`.

        Raises:
          ValueError: The slot has no owner.
        """
        if slot not in self._used or slot in self._retained:
            raise ValueError(f"slot {slot} is not in use")
        if slot in self._pinned:
            self._retained.add(slot)
        else:
            self._used.remove(slot)
            heapq.heappush(self._free, self._rank[slot])

    def is_pinned(self, slot: int) -> bool:
        """Returns whether a slot is kept from being reused."""
        return slot in self._pinned

    def pin(self, slots: Iterable[int]) -> None:
        """Keeps used slots from being reused until `unpin`, even if they are released before."""
        self._pinned.update(slots)

    def unpin(self) -> None:
        """Unpins all slots, and frees the retained ones."""
        self._pinned.clear()
        retained, self._retained = self._retained, set()
        for slot in retained:
            self.release(slot)


class SlotReserve:
    """Keeps the last free slots for tenants with nothing running.

    A tenant with a running request may take a slot only while more than the reserve is free; a tenant without one may
    take any. A new tenant thus gets a slot at once, however long the requests of others run, unless `size` other
    tenants have used up the reserve. No request is preempted.

    Args:
      slots: Number of slots.
      size: Number of slots in reserve, less than `slots`.

    Raises:
      ConfigError: `size` is negative, or not less than `slots`.
    """

    def __init__(self, slots: int, size: int) -> None:
        if not 0 <= size < slots:
            raise ConfigError(f"reserved_slots must be less than slots ({slots}), got {size}")
        self._num_shared = slots - size

    def num_open(self, num_used: int) -> int:
        """Returns the number of free slots that any tenant may take.

        Args:
          num_used: Number of slots in use.
        """
        return max(0, self._num_shared - num_used)


class RetryAfterEstimator:
    """Estimates when a slot will be free for a refused request.

    Slots become free one after the other, every (mean service time / slots) seconds. Refused requests come back in the
    same rhythm: each when as many slots have become free as requests were refused before it. The mean service time is
    that of the latest requests that ended, but no less than the mean time for which the running ones have had their
    slots: long requests are noticed while they run.

    Args:
      slots: Number of slots.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean_s: float | None = None
        self._num_running = 0
        self._assigned_sum = 0.0  # of the times at which the running requests got their slots
        self._num_refused = 0

    def assigned(self, now: float) -> None:
        """Books a slot that a request got."""
        self._num_running += 1
        self._assigned_sum += now

    def released(self, assigned_at: float, now: float) -> None:
        """Books a slot that became free.

        Args:
          assigned_at: Time at which the request got the slot.
          now: Current time.
        """
        self._num_running -= 1
        self._assigned_sum = self._assigned_sum - assigned_at if self._num_running else 0.0
        service_s = now - assigned_at
        last = service_s if self._mean_s is None else self._mean_s
        self._mean_s = last + _WEIGHT * (service_s - last)
        self._num_refused = max(0, self._num_refused - 1)

    def forget_refused(self) -> None:
        """Forgets refused requests, since nothing runs any more: a client that comes back now gets a slot at once.

        Some never come back, and those that come back early are refused, and counted, again and again.
        """
        self._num_refused = 0

    def refused(self, now: float) -> float:
        """Books a refused request, and returns the number of seconds after which it should be sent again."""
        if self._mean_s is None:
            return _UNKNOWN_S
        age = now - self._assigned_sum / self._num_running if self._num_running else 0.0
        interval = max(self._mean_s, age) / self._slots
        estimate = (self._num_refused + 1) * interval
        if estimate < _LONGEST_S:  # requests beyond that are not counted, as they don't wait for their turn
            self._num_refused += 1
        return min(max(estimate, _SHORTEST_S), _LONGEST_S)


class SlotAssignment:
    """Assigns slots in the queue's order. A request keeps its slot until it ends, unless it is of a batch.

    Batch requests take slots that are free when no other request can start, whatever is reserved, and give them up when
    one can, or when a step with all of them takes the others too long.

    A request that gets a slot restores the longest prefix of its prompt that is in memory: files were read while it
    waited. When its prefill begins, it restores more if another request has prefilled more of the same prefix since.

    Attributes:
      running: Requests with a slot by id, oldest first.
      probes: Requests of the engine's own, which get slots ahead of all others. They use no prefix cache.
      num_batch_running: Number of batch requests with a slot.
      num_batch_slots: Number of slots that batch requests may get beside the others that run, by the last assignment.
      num_preempted: Total times that a batch request gave its slot up.

    Args:
      pool: Free and used slots.
      reserve: Slots kept free for tenants with nothing running.
      queue: Requests without a slot.
      cache: The prefix cache; None restores only snapshots that come with a request.
      prefetcher: Searches on disk for waiting requests, if the cache has a tier on disk.
      mask_words: Number of words of a token mask.
      budget: Bounds the number of requests that may run if some are of batches.
    """

    def __init__(
        self,
        pool: SlotPool,
        reserve: SlotReserve,
        queue: WaitingQueue,
        cache: PrefixCache | None,
        prefetcher: Prefetcher | None,
        mask_words: int,
        budget: PrefillBudget,
    ) -> None:
        self.running: dict[str, RunningRequest] = {}
        self._pool = pool
        self._reserve = reserve
        self._queue = queue
        self._prefetcher = prefetcher
        self._cache = cache
        self._mask_words = mask_words
        self._budget = budget
        self._max_bytes = 0 if cache is None else cache.stats.budget  # of preempted states: as much again as the cache
        self._retry_after = RetryAfterEstimator(pool.size)
        self.probes: deque[Request] = deque()
        self._probe_ids: set[str] = set()  # of those that run
        self._num_expected = 0  # the most others that have run at a time lately
        self._expected_until = 0.0
        self.num_batch_running = 0
        self.num_batch_slots = pool.size
        self.num_preempted = 0

    @property
    def num_open(self) -> int:
        """Number of slots that any tenant may take: those that are free, or that batch requests have."""
        return self._reserve.num_open(self._pool.num_used - self.num_batch_running)

    def assign(self, now: float) -> list[RequestOutput]:
        """Gives slots to as many requests as possible.

        Returns:
          Last outputs of requests that could not be started.
        """
        while self.probes and self._pool.num_free:
            probe = self.probes.popleft()
            self.running[probe.id] = RunningRequest(probe, self._pool.claim(), now)
            self._probe_ids.add(probe.id)
        self._expect(now)
        failed = []
        while self._pool.num_free and (waiting := self._pop()) is not None:
            request, last = (waiting, None) if isinstance(waiting, Request) else (waiting.request, waiting.last)
            error = self._start(request, now, last)
            if error is not None:
                failed.append((request.id, error_output(error)))
        num_others = self._num_others
        self.num_batch_slots = self._budget.max_rows(num_others, self._pool.size, is_entry=True) - num_others
        return failed

    def _pop(self) -> Waiting | None:
        takes_batch = self._queue.num_batch > 0 and self._num_lines_over(is_entry=True) < 0
        return self._queue.pop(self._blocked_tenants(), takes_batch=takes_batch)

    def victims(self, *, can_replay: bool) -> list[RunningRequest]:
        """Returns the batch requests that should give their slots up, the newest first.

        A batch request gives its slot up for another request that can start, and when a decode step with all batch
        requests takes the others too long.

        Args:
          can_replay: Whether requests can go on that have generated a token.
        """
        num_wanted = self._queue.num_ready(self._blocked_tenants()) - self._pool.num_free
        num_wanted = min(num_wanted, max(self.num_open - self._pool.num_free, 1))
        num_wanted = min(max(num_wanted, self._num_lines_over()), _MAX_PREEMPTIONS)
        found = (each for each in reversed(self.running.values()) if self._is_preemptible(each, can_replay=can_replay))
        return list(islice(found, max(num_wanted, 0)))

    def preempt(self, running: RunningRequest, snapshot: Snapshot | None) -> RoostError | None:
        """Takes the slot of a batch request, which waits for another one ahead of all other batch requests.

        Args:
          snapshot: State of its slot if it has generated a token; see `RunningRequest.preempted`.

        Returns:
          The error that ends the request instead if its state has no room in memory; None if it waits.
        """
        self._free(running)
        self.num_preempted += 1
        preempted = running.preempted(snapshot)
        if preempted.num_bytes and preempted.num_bytes + self._queue.num_preempted_bytes > self._max_bytes:
            return QueueFullError(_NO_MEMORY)
        self._queue.put_back(preempted)
        return None

    @property
    def _num_others(self) -> int:
        """Number of requests with a slot that are neither of a batch nor the engine's own."""
        return len(self.running) - self.num_batch_running - len(self._probe_ids)

    def _expect(self, now: float) -> None:
        num_others = self._num_others
        if num_others >= self._num_expected or now >= self._expected_until:
            self._num_expected, self._expected_until = num_others, now + _LINGER_S

    def _num_lines_over(self, *, is_entry: bool = False) -> int:
        """Returns by how many the batch requests with a slot are too many beside the others; negative: too few.

        Args:
          is_entry: Whether further ones are to get slots; see `PrefillBudget.max_rows`.
        """
        num_others = max(self._num_others, self._num_expected)
        most = self._budget.max_rows(num_others, self._pool.size, is_entry=is_entry)
        return num_others + self.num_batch_running - most

    def _is_preemptible(self, running: RunningRequest, *, can_replay: bool) -> bool:
        is_free_to_go = running.request.is_batch and not self._pool.is_pinned(running.slot)
        return is_free_to_go and (can_replay or not running.num_tokens_dispatched)

    def check_room(self, request: Request, now: float) -> None:
        """Checks whether a request may wait, unless it is about to get a slot.

        Args:
          now: Current time, in seconds.

        Raises:
          QueueFullError: There is no room for the request in the queue.
        """
        num_free = self._pool.num_free + self.num_batch_running
        if self._queue.num_held < num_free and request.tenant not in self._blocked_tenants():
            return
        try:
            self._queue.check_room(request)
        except QueueFullError as error:
            raise QueueFullError(str(error), self._retry_after.refused(now)) from None

    def parent_of(self, request: Request) -> RunningRequest | None:
        """Returns the running request whose state this one may copy instead of prefilling the same prompt."""
        parent = None if request.fork_of is None else self.running.get(request.fork_of)
        if parent is None or not parent.can_fork or request.params.prompt_logprobs is not None:
            return None
        is_same = parent.request.prompt_token_ids == request.prompt_token_ids
        return (parent.parent or parent) if is_same else None

    def release(self, running: RunningRequest, now: float) -> None:
        """Takes a request's slot back, and charges its tenant for what the request really cost."""
        was_queued = running.request.id not in self._probe_ids
        self._free(running)
        if was_queued and not running.request.is_batch:
            self._queue.correct_cost(running.request, running.num_prompt_dispatched + running.num_tokens)
            self._retry_after.released(running.assigned_at, now)
        if not self._num_others:
            self.num_batch_slots = self._pool.size
            if not self._queue.num_requests:
                self._retry_after.forget_refused()

    def _free(self, running: RunningRequest) -> None:
        del self.running[running.request.id]
        self._probe_ids.discard(running.request.id)
        self._pool.release(running.slot)
        self.num_batch_running -= running.request.is_batch
        self._replace_parent(running)

    def _blocked_tenants(self) -> Set[str]:
        """Returns the tenants that may not take a free slot."""
        if self.num_open:
            return frozenset()
        return {each.request.tenant for each in self.running.values() if not each.request.is_batch}

    def _start(self, request: Request, now: float, last: RunningRequest | None) -> RoostError | None:
        """Gives a request a slot. Returns the error that ends the request instead; no other request is affected.

        Args:
          last: The request as it was when it lost its last slot, if it has had one.
        """
        slot = self._pool.claim()
        fetch = self._take_fetch(request.id)
        try:
            running = RunningRequest(request, slot, now, self.parent_of(request))
            self._restore(running, fetch)
            if last is not None:
                running.resume(last)
            elif request.constraint is not None or request.params.bad_phrases is not None:
                running.constraint = TokenConstraint(request, self._mask_words)
        except Exception as error:
            self._pool.release(slot)
            if not request.is_batch:
                self._queue.correct_cost(request, 0)
            return error if isinstance(error, RoostError) else RequestFailedError(_NOT_STARTED)
        self.running[request.id] = running
        self.num_batch_running += request.is_batch
        if not request.is_batch:
            self._retry_after.assigned(now)
        return None

    def _take_fetch(self, request_id: str) -> Fetch | None:
        """Returns the search on disk for a request that no longer waits, if there was one."""
        return None if self._prefetcher is None else self._prefetcher.take(request_id)

    def _replace_parent(self, ended: RunningRequest) -> None:
        """Lets the first fork of an ended request prefill the prompt instead, for all other forks."""
        forks = [each for each in self.running.values() if each.parent is ended]
        for fork in forks:
            fork.parent = None if fork is forks[0] else forks[0]
            with suppress(Exception):  # a restored snapshot only saves work
                self._restore(fork, self._take_fetch(fork.request.id))

    def _restore(self, running: RunningRequest, fetch: Fetch | None) -> None:
        """Restores the longest known prefix of a request's prompt, unless its prompt tokens are scored or it is a fork.

        Args:
          running: Request that just got its slot, or whose parent has ended.
          fetch: Search on disk for the same request, if there was one.
        """
        if self._cache is not None:
            running.key = _key_of(running, fetch)
        if running.request.replay is not None and running.request.replay.snapshot is not None:
            running.replay_from(running.request.replay.snapshot)
            return
        if running.parent is not None or running.request.params.prompt_logprobs is not None:
            return
        snapshots = (self._look_up(running, fetch), _own_snapshot(running))
        longest = max(filter(None, snapshots), key=lambda snapshot: snapshot.length, default=None)
        if longest is not None:
            running.restore_from(longest)

    def extend_restored(self, running: RunningRequest) -> None:
        """Restores more of a prompt of which nothing is prefilled yet, if another request has prefilled that since."""
        if self._cache is None or running.key is None or running.looked_up_at == self._cache.num_inserts:
            return
        num_restored = 0 if running.restore is None else running.restore.length
        is_scored = running.request.params.prompt_logprobs is not None
        if running.num_prompt_dispatched != num_restored or is_scored:
            return
        running.looked_up_at = self._cache.num_inserts
        if (longer := self._cache.extend_match(running.key, num_restored)) is not None:
            running.restore_from(longer)

    def _look_up(self, running: RunningRequest, fetch: Fetch | None) -> Snapshot | None:
        if self._cache is None or running.key is None:
            return None
        found = self._cache.match_prefix(running.key, None if fetch is None else fetch.found)
        running.looked_up_at = self._cache.num_inserts
        return found


def _key_of(running: RunningRequest, fetch: Fetch | None) -> PrefixKey:
    """Returns the key of a request's prompt, with the parent's or the search's bytes where there are any."""
    request, parent = running.request, running.parent
    if parent is not None and parent.key is not None:
        return PrefixKey(request.cache_salt, parent.key.tokens)
    if running.key is not None:
        return running.key
    return PrefixKey.of(request.prompt_token_ids, request.cache_salt) if fetch is None else fetch.key


def _own_snapshot(running: RunningRequest) -> Snapshot | None:
    """Returns the snapshot that came with the request, if it leaves at least one token to prefill."""
    snapshot = running.request.state
    is_useful = snapshot is not None and snapshot.length < len(running.request.prompt_token_ids)
    return snapshot if is_useful else None
