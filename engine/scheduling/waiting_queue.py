"""Queue of requests without a slot: bounded, fair between tenants, ordered by priority within one.

It refuses requests beyond its bounds, with an estimate of when a slot will be free for them.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Final

from ..types.errors import QueueFullError
from ..types.request import Request

OLDEST_EVERY: Final = 8
"""Interval, in requests of a tenant that get a slot, at which its oldest request goes first, so that none waits
forever."""

_EXPECTED_TOKENS: Final = 256
"""Maximum number of tokens that a request is expected to generate. Its tenant later pays for the actual number."""

_WEIGHT: Final = 0.1
"""Weight of the latest service time in the moving average: about the last twenty requests count."""

_UNKNOWN_S: Final = 1.0
"""Estimate while no request has ended."""

_SHORTEST_S: Final = 0.05

_LONGEST_S: Final = 60.0
"""Bounds of the estimate. Load changes within a minute, and clients don't wait longer."""


class FairShares:
    """Number of tokens that were served to each tenant, on a common scale (start-time fair queueing).

    The scale's zero follows the tenant that is served. A tenant that returns after a pause is not compensated for the
    pause, but is served before all tenants that have had more since.
    """

    def __init__(self) -> None:
        self._zero = 0
        self._used: dict[str, int] = {}

    def enter(self, tenant: str) -> None:
        """Adds a tenant that had no waiting request, or brings it up to the scale's zero."""
        self._used[tenant] = max(self._used.get(tenant, 0), self._zero)

    def first(self, tenants: Iterable[str]) -> str:
        """Returns the tenant with the fewest served tokens; among equals, the first."""
        tenant = min(tenants, key=self.used)
        self._zero = max(self._zero, self._used[tenant])
        return tenant

    def used(self, tenant: str) -> int:
        """Returns the number of tokens of a tenant, on the common scale."""
        return self._used[tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """Charges a tenant for tokens; a negative number corrects an estimate."""
        self._used[tenant] = self._used.get(tenant, self._zero) + tokens


def expected_tokens(request: Request) -> int:
    """Returns the expected cost of a request: its prompt tokens, and an estimate of its generated tokens."""
    limit = request.params.max_tokens
    return len(request.prompt_token_ids) + min(_EXPECTED_TOKENS, _EXPECTED_TOKENS if limit is None else limit)


class WaitingQueue:
    """Requests without a slot.

    The next request belongs to the tenant with the fewest served tokens; among its requests it has the lowest
    `priority`, then the highest age. With several tenants, none may take more of the queue than it leaves free, so that
    another tenant has room. A held request keeps its place, but is skipped until it is released.

    Attributes:
      num_tokens: Total prompt tokens of the requests.

    Args:
      max_requests: Maximum number of requests.
      max_tokens: Maximum number of prompt tokens; None sets no limit.
    """

    def __init__(self, max_requests: int, max_tokens: int | None = None, tenants: int = 1) -> None:
        self._shares = FairShares()
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._is_shared = tenants > 1
        self._tenants: dict[str, _TenantQueue] = {}
        self._requests: dict[str, Request] = {}
        self._num_added = 0
        self.num_tokens = 0
        self.num_held = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(self._tenants.values())

    def get(self, request_id: str) -> Request | None:
        """Returns a waiting request; None if none has this id."""
        return self._requests.get(request_id)

    def hold(self, request_id: str) -> None:
        """Keeps a request from being popped."""
        request = self._requests[request_id]
        self.num_held += not self.is_held(request_id)
        self._tenants[request.tenant].hold(request)

    def release(self, request_id: str) -> None:
        """Ends `hold`; has no effect if the request is not held, or no longer waiting."""
        if self.is_held(request_id):
            request = self._requests[request_id]
            self.num_held -= 1
            self._tenants[request.tenant].release(request)

    def is_held(self, request_id: str) -> bool:
        """Returns whether a request is waiting and held."""
        request = self._requests.get(request_id)
        return request is not None and self._tenants[request.tenant].is_held(request)

    def num_ready(self, blocked: Collection[str] = ()) -> int:
        """Returns the number of requests that `pop` could return one after the other.

        Args:
          blocked: Tenants whose requests may not start now.
        """
        return sum(each.num_requests - each.num_held for tenant, each in self._tenants.items() if tenant not in blocked)

    def held_in_rounds(self) -> Iterator[list[Request]]:
        """Yields each tenant's first held request, then each tenant's second, and so on.

        This is approximately the order in which they would be popped. The tenant with the fewest served tokens is
        first.
        """
        tenants = [tenant for tenant, queue in self._tenants.items() if queue.num_held]
        tenants.sort(key=self._shares.used)
        for requests in zip_longest(*(self._tenants[tenant].held() for tenant in tenants)):
            yield [request for request in requests if request is not None]

    def check_room(self, request: Request) -> None:
        """Checks whether a request may wait.

        Raises:
          QueueFullError: The queue is full, or the request's tenant takes too much of it.
        """
        own, num_tokens = self._tenants.get(request.tenant) or _TenantQueue(), len(request.prompt_token_ids)
        requests_left, tokens_left = self._max_requests - len(self), (self._max_tokens or 0) - self.num_tokens
        if requests_left <= 0:
            raise QueueFullError(f"the queue is full ({self._max_requests} requests wait); try again later")
        if self._max_tokens is not None and num_tokens > tokens_left:
            raise QueueFullError(f"the queue is full ({self.num_tokens} tokens of prompts wait); try again later")
        is_greedy = own.num_requests >= requests_left
        if self._max_tokens is not None:
            is_greedy |= own.num_tokens + num_tokens > tokens_left and own.num_requests > 0
        if self._is_shared and is_greedy:
            raise QueueFullError(f"too many requests of this API key wait ({own.num_requests}); try again later")

    def add(self, request: Request) -> None:
        """Adds a request with a new id, even if the queue is full; see `check_room`."""
        if request.tenant not in self._tenants:
            self._tenants[request.tenant] = _TenantQueue()
            self._shares.enter(request.tenant)
        self._tenants[request.tenant].add(_Entry(request, self._num_added))
        self._requests[request.id] = request
        self._num_added += 1
        self.num_tokens += len(request.prompt_token_ids)

    def pop(self, blocked: Collection[str] = ()) -> Request | None:
        """Removes the next request, and charges its tenant for the expected cost.

        Args:
          blocked: Tenants whose requests may not start now.

        Returns:
          The request, or None if every waiting request is held or may not start.
        """
        ready = (tenant for tenant, queue in self._tenants.items() if queue.num_requests > queue.num_held)
        tenants = [tenant for tenant in ready if tenant not in blocked]
        if not tenants:
            return None
        tenant = self._shares.first(tenants)
        request = self._tenants[tenant].pop()
        self._shares.charge(tenant, expected_tokens(request))
        self._forget(request)
        return request

    def correct_cost(self, request: Request, num_tokens: int) -> None:
        """Charges the tenant of a popped request for its actual cost instead of the expected one.

        Args:
          request: Request that has ended.
          num_tokens: Number of prompt tokens and generated tokens.
        """
        self._shares.charge(request.tenant, num_tokens - expected_tokens(request))

    def remove(self, request_id: str) -> bool:
        """Removes a request; returns whether it was waiting."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self.release(request_id)
        self._tenants[request.tenant].remove(request)
        self._forget(request)
        return True

    def _forget(self, request: Request) -> None:
        del self._requests[request.id]
        self.num_tokens -= len(request.prompt_token_ids)
        if not self._tenants[request.tenant].num_requests:
            del self._tenants[request.tenant]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request, and its number in the order of arrival."""

    request: Request
    number: int


class _TenantQueue:
    """Requests of one tenant, by priority, then by age.

    Attributes:
      num_tokens: Total prompt tokens of the requests.
    """

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_tokens = 0
        self._by_priority: dict[int, OrderedDict[str, _Entry]] = {}
        self._num_popped = 0
        self._held: set[str] = set()

    def __iter__(self) -> Iterator[Request]:
        return (entry.request for entries in self._by_priority.values() for entry in entries.values())

    @property
    def num_held(self) -> int:
        """Number of held requests, which `pop` skips."""
        return len(self._held)

    def add(self, entry: _Entry) -> None:
        """Adds a request after all others of its priority."""
        self._by_priority.setdefault(entry.request.priority, OrderedDict())[entry.request.id] = entry
        self._count(entry.request, 1)

    def hold(self, request: Request) -> None:
        """Holds a request until `release`."""
        self._held.add(request.id)

    def release(self, request: Request) -> None:
        """Ends `hold`; has no effect if the request is not held."""
        self._held.discard(request.id)

    def is_held(self, request: Request) -> bool:
        """Returns whether a request is held."""
        return request.id in self._held

    def held(self) -> Iterator[Request]:
        """Yields held requests by priority, then by age."""
        for priority in sorted(self._by_priority) if self._held else ():
            entries = self._by_priority[priority].values()
            yield from (entry.request for entry in entries if self.is_held(entry.request))

    def pop(self) -> Request:
        """Removes the next request; at least one must not be held."""
        self._num_popped += 1
        firsts = {
            priority: first for priority in self._by_priority if (first := self._first_ready(priority)) is not None
        }
        is_turn_of_oldest = self._num_popped % OLDEST_EVERY == 0
        priority = min(firsts, key=lambda each: firsts[each].number) if is_turn_of_oldest else min(firsts)
        request = firsts[priority].request
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        """Removes a request that is not held."""
        entries = self._by_priority[request.priority]
        del entries[request.id]
        if not entries:
            del self._by_priority[request.priority]
        self._count(request, -1)

    def _first_ready(self, priority: int) -> _Entry | None:
        return next((each for each in self._by_priority[priority].values() if not self.is_held(each.request)), None)

    def _count(self, request: Request, sign: int) -> None:
        self.num_requests += sign
        self.num_tokens += sign * len(request.prompt_token_ids)


class RetryAfterEstimator:
    """Estimates when a slot will be free for a refused request.

    One slot becomes free every (mean service time / slots) seconds. Estimates have the same rate: a refused request
    returns when as many slots have become free as requests were refused before it. The mean
    service time covers the latest ended requests, but is at least the mean time for which the running ones have had
    their slots, so that long requests are noticed while they run.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean_s: float | None = None
        self._num_running = 0
        self._assigned_sum = 0.0  # sum of the times at which the running requests got their slots
        self._num_refused = 0

    def assigned(self, now: float) -> None:
        """Records a slot that a request got."""
        self._num_running += 1
        self._assigned_sum += now

    def released(self, assigned_at: float, now: float) -> None:
        """Records a slot that became free.

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
        """Resets the count of refused requests, once no request is running: a client that returns now immediately gets
        a slot.

        Some clients never return, and others return early and are refused and counted repeatedly.
        """
        self._num_refused = 0

    def refused(self, now: float) -> float:
        """Records a refused request, and returns the number of seconds after which it should be sent again."""
        if self._mean_s is None:
            return _UNKNOWN_S
        age = now - self._assigned_sum / self._num_running if self._num_running else 0.0
        interval = max(self._mean_s, age) / self._slots
        estimate = (self._num_refused + 1) * interval
        if estimate < _LONGEST_S:  # requests beyond that are not counted, since they don't wait that long
            self._num_refused += 1
        return min(max(estimate, _SHORTEST_S), _LONGEST_S)
