"""Assigns slots to waiting requests, and restores what is cached of their prompts."""

from collections import deque
from collections.abc import Set
from contextlib import suppress
from itertools import islice
from typing import Final

from ..core.errors import QueueFullError, RequestFailedError, RoostError
from ..core.request import Request, error_output
from ..core.snapshot import Snapshot
from ..prefix_cache.cache import PrefixCache
from ..prefix_cache.tree import PrefixKey
from .plan import RequestOutput
from .prefetcher import Fetch, Prefetcher
from .prefill_budget import PrefillBudget
from .retry_after import RetryAfterEstimator
from .running_request import RunningRequest
from .slots import SlotPool, SlotReserve
from .token_constraint import TokenConstraint
from .waiting_queue import Waiting, WaitingQueue

_MAX_PREEMPTIONS: Final = 8
"""Maximum number of slots that batch requests give up in one step, since the states are copied to the host."""

_LINGER_S: Final = 0.25
"""Seconds for which batch requests leave room for others that have ended, since the next ones often follow at once."""

_NO_MEMORY: Final = (
    "a request with precedence got the slot of this line of a batch, whose state has no room in host memory; "
    "give --state-cache-gib more memory"
)

_NOT_STARTED: Final = "the engine could not start the request; others are not affected"


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
