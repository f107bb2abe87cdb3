"""Slots, and the queue of requests without one: bounded, fair between tenants, ordered by priority within one.

A slot is a row of the state pool, identified by its index. A request that gets one restores the cached prefix of its
prompt. A request beyond the queue's bounds is refused, with an estimate of when a slot will be free for it.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import attrgetter
from typing import Final, NamedTuple

from ..prefix_cache.cache import PrefixCache, PrefixKey
from ..types.errors import ConfigError, QueueFullError, RequestFailedError, RoostError
from ..types.request import Request, error_output
from ..types.snapshot import Snapshot
from .running_request import RequestOutput, RunningRequest, TokenConstraint

OLDEST_EVERY: Final = 8
"""Interval, in requests of a tenant that get a slot, at which its oldest request goes first, so that none waits
forever."""

_EXPECTED_TOKENS: Final = 256
"""Maximum number of tokens that a request is expected to generate. Its tenant later pays for the actual number."""

_WEIGHT: Final = 0.1
"""Weight of the latest service time in the moving average: about the last twenty requests count."""

_UNKNOWN_S: Final = 1.0
"""Estimated wait of a refused request while no request has ended."""

_SHORTEST_S: Final = 0.05

_LONGEST_S: Final = 60.0
"""Bounds of the estimate. Load changes within a minute, and clients don't wait longer."""

_NOT_STARTED: Final = "the engine could not start the request; others are not affected"


class SlotPool:
    """Claims the first free slot in a fixed order, so that slots in use stay close together.

    Attributes:
      size: Number of slots.
      rank: Place of each slot in the order.
      free: Ranks of the slots without an owner, as a heap. Retained slots are not free.
      pinned: Slots that are kept from being reused until `unpin`, even if they are released before.
      retained: Slots that were released while they were pinned.

    Args:
      order: All slots, in the order in which they are claimed; None stands for ascending order.
    """

    def __init__(self, size: int, order: Sequence[int] | None = None) -> None:
        self.size = size
        self.free = list(range(size))
        self.pinned: set[int] = set()
        self.retained: set[int] = set()
        self._order = range(size) if order is None else order
        self.rank = {slot: rank for rank, slot in enumerate(self._order)}

    def claim(self) -> int:
        """Claims the first free slot.

        Raises:
          IndexError: No slot is free.
        """
        return self._order[heapq.heappop(self.free)]

    def release(self, slot: int) -> None:
        """Frees a claimed slot; a pinned one is retained until `unpin`."""
        if slot in self.pinned:
            self.retained.add(slot)
        else:
            heapq.heappush(self.free, self.rank[slot])

    def unpin(self) -> None:
        """Unpins all slots, and frees the retained ones."""
        self.pinned.clear()
        while self.retained:
            self.release(self.retained.pop())


class FairShares:
    """Number of tokens that were served to each tenant, on a common scale (start-time fair queueing).

    The scale's zero follows the tenant that is served. A tenant that returns after a pause is not compensated for the
    pause, but is served before all tenants that have had more since.

    Attributes:
      used: Number of tokens of each tenant.
    """

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self._zero = 0

    def enter(self, tenant: str) -> None:
        """Adds a tenant that had no waiting request, or brings it up to the scale's zero."""
        self.used[tenant] = max(self.used.get(tenant, 0), self._zero)

    def first(self, tenants: Iterable[str]) -> str:
        """Returns the tenant with the fewest served tokens; among equals, the first."""
        tenant = min(tenants, key=self.used.__getitem__)
        self._zero = max(self._zero, self.used[tenant])
        return tenant

    def charge(self, tenant: str, tokens: int) -> None:
        """Charges a tenant for tokens; a negative number corrects an estimate."""
        self.used[tenant] = self.used.get(tenant, self._zero) + tokens


def expected_tokens(request: Request) -> int:
    """Returns the expected cost of a request: its prompt tokens, and an estimate of its generated tokens."""
    limit = request.params.max_tokens
    return len(request.prompt_token_ids) + min(_EXPECTED_TOKENS, _EXPECTED_TOKENS if limit is None else limit)


class QueuedRequest(NamedTuple):
    """A request in the queue. Requests are compared by priority, then by age.

    Attributes:
      priority: The request's priority.
      number: Its number in the order of arrival.
    """

    priority: int
    number: int
    request: Request


@dataclass(slots=True)
class _TenantQueue:
    """Requests of one tenant.

    Attributes:
      waiting: The requests, by priority, then by age.
      held: Ids of held requests.
      num_tokens: Total prompt tokens of the requests.
      num_popped: Number of requests that were popped since the first of them came.
    """

    waiting: list[QueuedRequest] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    num_tokens: int = 0
    num_popped: int = 0

    def those(self, *, are_held: bool) -> Iterator[QueuedRequest]:
        """Returns the requests that are held, or those that are not."""
        if not self.held:  # the usual case
            return iter(() if are_held else self.waiting)
        return (each for each in self.waiting if (each.request.id in self.held) == are_held)


class WaitingQueue:
    """Requests without a slot.

    The next request belongs to the tenant with the fewest served tokens; among its requests it has the lowest
    `priority`, then the highest age. With several tenants, none may take more of the queue than it leaves free, so that
    another tenant has room. A held request keeps its place, but is skipped until it is released.

    Attributes:
      waiting: The requests by id, oldest first.
      num_tokens: Total prompt tokens of the requests.

    Args:
      max_requests: Maximum number of requests.
      max_tokens: Maximum number of prompt tokens; None sets no limit.
    """

    def __init__(self, max_requests: int, max_tokens: int | None = None, tenants: int = 1) -> None:
        self.waiting: dict[str, QueuedRequest] = {}
        self.num_tokens = 0
        self._shares = FairShares()
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._is_shared = tenants > 1
        self._tenants: dict[str, _TenantQueue] = {}
        self._num_added = 0

    @property
    def num_held(self) -> int:
        """Number of held requests."""
        return sum(len(own.held) for own in self._tenants.values())

    def hold(self, request_id: str) -> None:
        """Keeps a request from being popped."""
        self._tenants[self.waiting[request_id].request.tenant].held.add(request_id)

    def release(self, request_id: str) -> None:
        """Ends `hold`; has no effect if the request is not held, or no longer waiting."""
        if (found := self.waiting.get(request_id)) is not None:
            self._tenants[found.request.tenant].held.discard(request_id)

    def is_held(self, request: Request) -> bool:
        """Returns whether a waiting request is held."""
        return request.id in self._tenants[request.tenant].held

    def num_ready(self, blocked: Collection[str]) -> int:
        """Returns the number of requests that `pop` could return one after the other."""
        return sum(len(own.waiting) - len(own.held) for each, own in self._tenants.items() if each not in blocked)

    def held_in_rounds(self) -> Iterator[list[Request]]:
        """Yields each tenant's first held request, then each tenant's second, and so on.

        This is approximately the order in which they would be popped. The tenant with the fewest served tokens is
        first.
        """
        tenants = sorted((each for each, own in self._tenants.items() if own.held), key=self._shares.used.__getitem__)
        for waiting in zip_longest(*(self._tenants[tenant].those(are_held=True) for tenant in tenants)):
            yield [each.request for each in waiting if each is not None]

    def refusal(self, request: Request) -> str | None:
        """Returns why a request may not wait: the queue is full, or its tenant takes too much of it. None if it may."""
        own, num_tokens = self._tenants.get(request.tenant), len(request.prompt_token_ids)
        requests_left, tokens_left = self._max_requests - len(self.waiting), (self._max_tokens or 0) - self.num_tokens
        if requests_left <= 0:
            return f"the queue is full ({self._max_requests} requests wait); try again later"
        if self._max_tokens is not None and num_tokens > tokens_left:
            return f"the queue is full ({self.num_tokens} tokens of prompts wait); try again later"
        if own is None or not self._is_shared:
            return None
        is_greedy = len(own.waiting) >= requests_left
        if is_greedy or (self._max_tokens is not None and own.num_tokens + num_tokens > tokens_left):
            return f"too many requests of this API key wait ({len(own.waiting)}); try again later"
        return None

    def add(self, request: Request) -> None:
        """Adds a request with a new id, even if the queue is full; see `refusal`."""
        if request.tenant not in self._tenants:
            self._tenants[request.tenant] = _TenantQueue()
            self._shares.enter(request.tenant)
        self.waiting[request.id] = waiting = QueuedRequest(request.priority, self._num_added, request)
        insort(self._tenants[request.tenant].waiting, waiting)
        self._num_added += 1
        self._count(request, 1)

    def pop(self, blocked: Collection[str] = ()) -> Request | None:
        """Removes the next request, and charges its tenant for the expected cost.

        Args:
          blocked: Tenants whose requests may not start now.

        Returns:
          The request, or None if every waiting request is held or may not start.
        """
        ready = [tenant for tenant, own in self._tenants.items() if len(own.waiting) > len(own.held)]
        tenants = [tenant for tenant in ready if tenant not in blocked]
        if not tenants:
            return None
        tenant = self._shares.first(tenants)
        own = self._tenants[tenant]
        own.num_popped += 1
        requests, is_turn_of_oldest = own.those(are_held=False), own.num_popped % OLDEST_EVERY == 0
        found = min(requests, key=attrgetter("number")) if is_turn_of_oldest else next(requests)
        self._shares.charge(tenant, expected_tokens(found.request))
        self.remove(found.request.id)
        return found.request

    def correct_cost(self, request: Request, num_tokens: int) -> None:
        """Charges the tenant of a popped request for its actual cost instead of the expected one.

        Args:
          request: Request that has ended.
          num_tokens: Number of prompt tokens and generated tokens.
        """
        self._shares.charge(request.tenant, num_tokens - expected_tokens(request))

    def remove(self, request_id: str) -> bool:
        """Removes a request; returns whether it was waiting."""
        found = self.waiting.pop(request_id, None)
        if found is None:
            return False
        own = self._tenants[found.request.tenant]
        own.held.discard(request_id)
        del own.waiting[bisect_left(own.waiting, found)]
        self._count(found.request, -1)
        if not own.waiting:
            del self._tenants[found.request.tenant]
        return True

    def _count(self, request: Request, sign: int) -> None:
        num_tokens = sign * len(request.prompt_token_ids)
        self.num_tokens += num_tokens
        self._tenants[request.tenant].num_tokens += num_tokens


class SlotAssignment:
    """Assigns slots in the queue's order. A request from the queue keeps its slot until it ends.

    A request that gets a slot restores the longest prefix of its prompt in memory; files were read while it waited.
    When its prefill begins, it restores more if another request has prefilled more of the same prefix since then.

    The last `reserved` slots are kept free for tenants without a running request. Such a tenant may take any slot and
    thus immediately gets one, independent of how long the requests of others run, unless as many other tenants have
    used up the reserve. No request loses its slot for that.

    Attributes:
      running: Requests with a slot by id, oldest first.
      lent: Requests among them that yield their slots to requests from the queue.
      pool: Free and used slots.
      probe: Request of the engine itself, which gets the next slot and uses no prefix cache; None if it has none.
      failed: Last outputs of requests that could not be started. No other request is affected.

    Args:
      pool: Free and used slots.
      queue: Requests without a slot.
      cache: The prefix cache; None restores only snapshots that come with a request.
      take_fetch: Returns the key of a prompt and the snapshot that was found on disk for it, if it was searched for.
      mask_words: Number of words of a token mask.
      reserved: Number of slots in reserve, less than there are slots.

    Raises:
      ConfigError: `reserved` is negative, or too large.
    """

    def __init__(
        self,
        pool: SlotPool,
        queue: WaitingQueue,
        cache: PrefixCache | None = None,
        take_fetch: Callable[[str], tuple[PrefixKey, Snapshot | None] | None] | None = None,
        *,
        mask_words: int = 0,
        reserved: int = 0,
    ) -> None:
        if not 0 <= reserved < pool.size:
            raise ConfigError(f"reserved_slots must be less than slots ({pool.size}), got {reserved}")
        self.running: dict[str, RunningRequest] = {}
        self.lent: dict[str, RunningRequest] = {}
        self.pool = pool
        self.probe: Request | None = None
        self.failed: list[RequestOutput] = []
        self._queue = queue
        self._cache = cache
        self._take_fetch = take_fetch
        self._mask_words = mask_words
        self._reserved = reserved
        self._service_s: float | None = None  # moving average of ended requests
        self._num_refused = 0

    @property
    def num_queued(self) -> int:
        """Number of running requests that came from the queue."""
        return len(self.running) - len(self.lent)

    @property
    def num_open(self) -> int:
        """Number of slots that any tenant may take: free and lent ones."""
        return max(0, len(self.pool.free) + len(self.lent) - self._reserved)

    @property
    def num_ready(self) -> int:
        """Number of requests in the queue that would get slots if enough were free."""
        return self._queue.num_ready(self._blocked_tenants())

    def assign(self, now: float) -> None:
        """Gives slots to as many requests as possible."""
        if self.probe is not None and self.pool.free:
            self.running[self.probe.id] = RunningRequest(self.probe, self.pool.claim(), now)
            self.probe = None
        while self.pool.free and self._queue.waiting:
            request = self._queue.pop(self._blocked_tenants())
            if request is None:
                return
            if not self.start(request, None, now):
                self._queue.correct_cost(request, 0)

    def add(self, request: Request, now: float) -> None:
        """Queues a request, even beyond the queue's limits if it is about to get a slot.

        Args:
          now: Current time, in seconds.

        Raises:
          QueueFullError: The queue has no room for the request.
        """
        if self._queue.refusal(request) is not None:
            self.assign(now)
            num_free = len(self.pool.free) + len(self.lent)
            is_next = self._queue.num_held < num_free and request.tenant not in self._blocked_tenants()
            if not is_next and (reason := self._queue.refusal(request)) is not None:
                raise QueueFullError(reason, self._retry_after(now))
        self._queue.add(request)

    def parent_of(self, request: Request) -> RunningRequest | None:
        """Returns the running request whose state this one may copy instead of prefilling the same prompt."""
        parent = None if request.fork_of is None else self.running.get(request.fork_of)
        if parent is None or not parent.can_fork or request.params.prompt_logprobs is not None:
            return None
        is_same = parent.request.prompt_token_ids == request.prompt_token_ids
        return (parent.parent or parent) if is_same else None

    def start(self, request: Request, last: RunningRequest | None, now: float) -> bool:
        """Gives a request a slot; returns whether it could be started.

        Args:
          last: The request at the time when it lost its last slot; None if it had none.
        """
        slot = self.pool.claim()
        try:
            running = RunningRequest(request, slot, now, self.parent_of(request))
            self._restore(running)
            if last is not None:
                running.resume(last)
            elif request.constraint is not None or request.params.bad_phrases is not None:
                running.constraint = TokenConstraint(request, self._mask_words)
        except Exception as error:
            self.pool.release(slot)
            reason = error if isinstance(error, RoostError) else RequestFailedError(_NOT_STARTED)
            self.failed.append((request.id, error_output(reason)))
            return False
        self.running[request.id] = running
        if request.preemptible:
            self.lent[request.id] = running
        return True

    def release(self, running: RunningRequest, now: float) -> None:
        """Takes a request's slot back, and charges its tenant for the request's actual cost."""
        if running.request.id not in self.lent:
            self._queue.correct_cost(running.request, running.num_prompt_dispatched + running.num_tokens)
            service_s = now - running.assigned_at
            last_s = service_s if self._service_s is None else self._service_s
            self._service_s = last_s + _WEIGHT * (service_s - last_s)
            self._num_refused = max(0, self._num_refused - 1)
        self.free(running)
        if not (self.num_queued or self._queue.waiting):
            self._num_refused = 0  # refused clients that return now immediately get a slot; some never return

    def free(self, running: RunningRequest) -> None:
        """Takes a request's slot back without a charge."""
        request_id = running.request.id
        self.lent.pop(request_id, None)
        del self.running[request_id]
        self.pool.release(running.slot)
        forks = [each for each in self.running.values() if each.parent is running]
        for fork in forks:  # the first one prefills the prompt instead, for all others
            fork.parent = None if fork is forks[0] else forks[0]
            with suppress(Exception):  # a restored snapshot only saves work
                self._restore(fork)

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

    def _blocked_tenants(self) -> Collection[str]:
        """Returns the tenants that may not take a free slot."""
        if self.num_open:
            return ()
        return {each.request.tenant for name, each in self.running.items() if name not in self.lent}

    def _restore(self, running: RunningRequest) -> None:
        """Restores the longest cached prefix of a request's prompt, unless its prompt tokens are scored or it is a
        fork.

        The key shares the bytes of the parent's or the search's key if there is one.
        """
        request, parent = running.request, running.parent
        fetch = None if self._take_fetch is None else self._take_fetch(request.id)
        if self._cache is not None and parent is not None and parent.key is not None:
            running.key = PrefixKey(request.cache_salt, parent.key.tokens)
        elif self._cache is not None and running.key is None:
            running.key = PrefixKey.of(request.prompt_token_ids, request.cache_salt) if fetch is None else fetch[0]
        if request.replay is not None and request.replay.snapshot is not None:
            running.replay_from(request.replay.snapshot)
            return
        if parent is not None or request.params.prompt_logprobs is not None:
            return
        found, own = None, request.state
        if self._cache is not None and running.key is not None:
            found = self._cache.match_prefix(running.key, None if fetch is None else fetch[1])
            running.looked_up_at = self._cache.num_inserts
        if own is not None and (0 if found is None else found.length) < own.length < len(request.prompt_token_ids):
            found = own
        if found is not None:
            running.restore_from(found)

    def _retry_after(self, now: float) -> float:
        """Counts a refused request, and returns the number of seconds after which it should be sent again.

        One slot becomes free every (mean service time / slots) seconds. Estimates have the same rate: a refused request
        returns when as many slots have become free as requests were refused before it. The mean service time covers the
        latest ended requests, but is at least the mean time for which the running ones have had their slots, so that
        long requests are noticed while they run.
        """
        if self._service_s is None:
            return _UNKNOWN_S
        ages = [now - each.assigned_at for name, each in self.running.items() if name not in self.lent]
        service_s = max(self._service_s, sum(ages) / len(ages) if ages else 0.0)
        estimate = (self._num_refused + 1) * service_s / self.pool.size
        if estimate < _LONGEST_S:  # requests beyond that are not counted, since they don't wait that long
            self._num_refused += 1
        return min(max(estimate, _SHORTEST_S), _LONGEST_S)
