"""Slots: which are free, which are kept for tenants without a running request, and which request gets the next one.

A slot is a row of the state pool, identified by its index. A request that gets one restores the cached prefix of its
prompt.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from itertools import chain
from typing import Final

from ..prefix_cache.cache import PrefixCache, PrefixKey
from ..types.errors import ConfigError, QueueFullError, RequestFailedError, RoostError
from ..types.request import Request, error_output
from ..types.snapshot import Snapshot
from .prefetcher import Fetch, Prefetcher
from .running_request import RequestOutput, RunningRequest, TokenConstraint
from .waiting_queue import RetryAfterEstimator, WaitingQueue

_NOT_STARTED: Final = "the engine could not start the request; others are not affected"


class SlotPool:
    """Claims the first free slot in a fixed order, so that slots in use stay close together.

    Free and used slots are disjoint, and together they are all slots.

    Args:
      order: All slots, in the order in which they are claimed; None stands for ascending order.
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
        """Claims the first free slot.

        Raises:
          IndexError: No slot is free.
        """
        slot = self._order[heapq.heappop(self._free)]
        self._used.add(slot)
        return slot

    def release(self, slot: int) -> None:
        """Frees a slot; a pinned one is retained until `unpin`.

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
    """Keeps the last free slots for tenants without a running request.

    A tenant with a running request may take a slot only while more slots than the reserve are free; a tenant without
    one may take any. A new tenant thus immediately gets a slot, independent of how long the requests of others run,
    unless `size` other tenants have used up the reserve. No request loses its slot for that.

    Args:
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


class SlotAssignment:
    """Assigns slots in the queue's order. A request from the queue keeps its slot until it ends.

    A request that gets a slot restores the longest prefix of its prompt in memory; files were read while it waited.
    When its prefill begins, it restores more if another request has prefilled more of the same prefix since then.

    Attributes:
      running: Requests with a slot by id, oldest first.
      queued: Running requests that came from the queue, by id.
      pool: Free and used slots.
      probes: The engine's own requests, which get slots ahead of all others. They use no prefix cache.

    Args:
      pool: Free and used slots.
      reserve: Slots kept free for tenants without a running request.
      queue: Requests without a slot.
      cache: The prefix cache; None restores only snapshots that come with a request.
      prefetcher: Searches on disk for waiting requests, if the cache has a tier on disk.
      mask_words: Number of words of a token mask.
    """

    def __init__(
        self,
        pool: SlotPool,
        reserve: SlotReserve,
        queue: WaitingQueue,
        cache: PrefixCache | None,
        prefetcher: Prefetcher | None,
        mask_words: int,
    ) -> None:
        self.running: dict[str, RunningRequest] = {}
        self.queued: dict[str, RunningRequest] = {}
        self.pool = pool
        self._reserve = reserve
        self._queue = queue
        self._prefetcher = prefetcher
        self._cache = cache
        self._mask_words = mask_words
        self._retry_after = RetryAfterEstimator(pool.size)
        self.probes: deque[Request] = deque()
        self._running_probes: dict[str, RunningRequest] = {}

    @property
    def num_lent(self) -> int:
        """Number of slots of requests that `start` was called for, which yield them to requests from the queue."""
        return len(self.running) - len(self.queued) - len(self._running_probes)

    @property
    def num_open(self) -> int:
        """Number of slots that any tenant may take: free and lent ones."""
        return self._reserve.num_open(self.pool.num_used - self.num_lent)

    @property
    def num_ready(self) -> int:
        """Number of requests in the queue that would get slots if enough were free."""
        return self._queue.num_ready(self._blocked_tenants())

    def assign(self, now: float) -> list[RequestOutput]:
        """Gives slots to as many requests as possible.

        Returns:
          Last outputs of requests that could not be started.
        """
        while self.probes and self.pool.num_free:
            probe = self.probes.popleft()
            running = RunningRequest(probe, self.pool.claim(), now)
            self.running[probe.id] = self._running_probes[probe.id] = running
        failed = []
        while self.pool.num_free and (request := self._queue.pop(self._blocked_tenants())) is not None:
            failures = self.start(request, None, now)
            if failures:
                failed += failures
                self._queue.correct_cost(request, 0)
            else:
                self.queued[request.id] = self.running[request.id]
                self._retry_after.assigned(now)
        return failed

    def check_room(self, request: Request, now: float) -> None:
        """Checks whether a request may wait, unless it is about to get a slot.

        Args:
          now: Current time, in seconds.

        Raises:
          QueueFullError: The queue has no room for the request.
        """
        num_free = self.pool.num_free + self.num_lent
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
        """Takes a request's slot back, and charges its tenant for the request's actual cost."""
        was_queued = running.request.id in self.queued
        self.free(running)
        if was_queued:
            self._queue.correct_cost(running.request, running.num_prompt_dispatched + running.num_tokens)
            self._retry_after.released(running.assigned_at, now)
        if not self.queued and not len(self._queue):
            self._retry_after.forget_refused()

    def free(self, running: RunningRequest) -> None:
        """Takes a request's slot back without a charge."""
        del self.running[running.request.id]
        self.queued.pop(running.request.id, None)
        self._running_probes.pop(running.request.id, None)
        self.pool.release(running.slot)
        self._replace_parent(running)

    def _blocked_tenants(self) -> Set[str]:
        """Returns the tenants that may not take a free slot."""
        if self.num_open:
            return frozenset()
        return {each.request.tenant for each in chain(self.queued.values(), self._running_probes.values())}

    def start(self, request: Request, last: RunningRequest | None, now: float) -> list[RequestOutput]:
        """Gives a request a slot.

        Args:
          last: The request at the time when it lost its last slot; None if it had none.

        Returns:
          The last output of a request that could not be started. No other request is affected.
        """
        slot = self.pool.claim()
        fetch = self._take_fetch(request.id)
        try:
            running = RunningRequest(request, slot, now, self.parent_of(request))
            self._restore(running, fetch)
            if last is not None:
                running.resume(last)
            elif request.constraint is not None or request.params.bad_phrases is not None:
                running.constraint = TokenConstraint(request, self._mask_words)
        except Exception as error:
            self.pool.release(slot)
            reason = error if isinstance(error, RoostError) else RequestFailedError(_NOT_STARTED)
            return [(request.id, error_output(reason))]
        self.running[request.id] = running
        return []

    def _take_fetch(self, request_id: str) -> Fetch | None:
        """Returns the search on disk for a request that has stopped waiting, if there was one."""
        return None if self._prefetcher is None else self._prefetcher.take(request_id)

    def _replace_parent(self, ended: RunningRequest) -> None:
        """Lets the first fork of an ended request prefill the prompt instead, for all other forks."""
        forks = [each for each in self.running.values() if each.parent is ended]
        for fork in forks:
            fork.parent = None if fork is forks[0] else forks[0]
            with suppress(Exception):  # a restored snapshot only saves work
                self._restore(fork, self._take_fetch(fork.request.id))

    def _restore(self, running: RunningRequest, fetch: Fetch | None) -> None:
        """Restores the longest cached prefix of a request's prompt, unless its prompt tokens are scored or it is a
        fork.

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
        """Restores a longer prefix of a prompt before its prefill starts, if another request has prefilled one."""
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
    """Returns the key of a request's prompt, which shares the bytes of the parent's or the search's key if there is
    one.
    """
    request, parent = running.request, running.parent
    if parent is not None and parent.key is not None:
        return PrefixKey(request.cache_salt, parent.key.tokens)
    if running.key is not None:
        return running.key
    return PrefixKey.of(request.prompt_token_ids, request.cache_salt) if fetch is None else fetch.key


def _own_snapshot(running: RunningRequest) -> Snapshot | None:
    """Returns the snapshot that came with the request, if at least one token remains to prefill."""
    snapshot = running.request.state
    is_useful = snapshot is not None and snapshot.length < len(running.request.prompt_token_ids)
    return snapshot if is_useful else None
