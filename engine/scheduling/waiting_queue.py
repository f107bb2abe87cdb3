"""Requests that wait for a slot, and who of them is next: bounded, fair between tenants, by priority within one."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Final

from ..core.errors import QueueFullError
from ..core.request import Request

OLDEST_EVERY: Final = 8
"""One of so many of a tenant's requests that get a slot is its oldest, whatever its priority; so none waits forever."""

_EXPECTED_TOKENS: Final = 256
"""What a request is expected to generate at most; most end by themselves. What it was is booked afterwards."""


def expected_tokens(request: Request) -> int:
    """What a request will probably cost: its prompt, and some of what it may generate."""
    limit = request.params.max_tokens
    return len(request.prompt_token_ids) + min(_EXPECTED_TOKENS, _EXPECTED_TOKENS if limit is None else limit)


class FairShares:
    """How many tokens each tenant has had, on one scale for all (start-time fair queueing).

    The scale's zero moves up with whoever is served: a tenant that comes back after a pause has no claim on what it
    might have had meanwhile, but is served before all that have had more since.
    """

    def __init__(self) -> None:
        self._zero = 0
        self._used: dict[str, int] = {}

    def enter(self, tenant: str) -> None:
        """A tenant that had nothing waiting has something now."""
        self._used[tenant] = max(self._used.get(tenant, 0), self._zero)

    def first(self, tenants: Iterable[str]) -> str:
        """Who has had least; of equals, the first."""
        tenant = min(tenants, key=self.used)
        self._zero = max(self._zero, self._used[tenant])
        return tenant

    def used(self, tenant: str) -> int:
        """What a tenant has had, on the common scale."""
        return self._used[tenant]

    def charge(self, tenant: str, tokens: int) -> None:
        """Books tokens; fewer than none where too many were booked before."""
        self._used[tenant] = self._used.get(tenant, self._zero) + tokens


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request and its number in the order of arrival."""

    request: Request
    number: int

    @property
    def id(self) -> str:
        return self.request.id


class _Line:
    """One tenant's requests: the most urgent first, of those the oldest."""

    def __init__(self) -> None:
        self._classes: dict[int, OrderedDict[str, _Entry]] = {}
        self._num_popped = 0
        self._held: set[str] = set()
        self.num_requests = 0
        self.num_tokens = 0

    def __iter__(self) -> Iterator[Request]:
        return (entry.request for entries in self._classes.values() for entry in entries.values())

    def add(self, entry: _Entry) -> None:
        self._classes.setdefault(entry.request.priority, OrderedDict())[entry.request.id] = entry
        self._count(entry.request, 1)

    @property
    def num_held(self) -> int:
        return len(self._held)

    def hold(self, request: Request) -> None:
        self._held.add(request.id)

    def release(self, request: Request) -> None:
        self._held.discard(request.id)

    def is_held(self, request: Request) -> bool:
        return request.id in self._held

    def held(self) -> Iterator[Request]:
        """Those that are held, the most urgent first, of those the oldest."""
        for urgency in sorted(self._classes) if self._held else ():
            yield from (entry.request for entry in self._classes[urgency].values() if entry.id in self._held)

    def pop(self) -> Request:
        self._num_popped += 1
        by_age = self._num_popped % OLDEST_EVERY == 0
        firsts = {urgency: first for urgency in self._classes if (first := self._first_ready(urgency)) is not None}
        urgency = min(firsts, key=lambda each: firsts[each].number) if by_age else min(firsts)
        request = firsts[urgency].request
        self.remove(request)
        return request

    def remove(self, request: Request) -> None:
        entries = self._classes[request.priority]
        del entries[request.id]
        if not entries:
            del self._classes[request.priority]
        self._count(request, -1)

    def _first_ready(self, urgency: int) -> _Entry | None:
        return next((entry for entry in self._classes[urgency].values() if entry.id not in self._held), None)

    def _count(self, request: Request, sign: int) -> None:
        self.num_requests += sign
        self.num_tokens += sign * len(request.prompt_token_ids)


class WaitingQueue:
    """Requests without a slot. It knows no time and no slots.

    Next is a request of the tenant that has had the fewest tokens; of its requests the one with the lowest `priority`,
    of those the oldest. Where there are several tenants, none may take more of the queue than it leaves free, so that
    there is a place for another. A request that is held keeps its place, but is passed over until it is released.

    Args:
      max_requests: how many may wait.
      max_tokens: how many tokens their prompts may have together; None is no limit.
      tenants: how many there are.
    """

    def __init__(self, max_requests: int, max_tokens: int | None = None, tenants: int = 1) -> None:
        self.shares = FairShares()
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._is_shared = tenants > 1
        self._lines: dict[str, _Line] = {}
        self._requests: dict[str, Request] = {}
        self._num_added = 0
        self._num_tokens = 0
        self._num_held = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(self._lines.values())

    @property
    def num_tokens(self) -> int:
        """Of all prompts together."""
        return self._num_tokens

    @property
    def num_ready(self) -> int:
        """Number of requests that are not held."""
        return len(self) - self._num_held

    @property
    def num_held(self) -> int:
        """Number of requests that are held."""
        return self._num_held

    def get(self, request_id: str) -> Request | None:
        """Returns a request that waits."""
        return self._requests.get(request_id)

    def hold(self, request_id: str) -> None:
        """Keeps a request from being popped."""
        request = self._requests[request_id]
        self._num_held += not self.is_held(request_id)
        self._lines[request.tenant].hold(request)

    def release(self, request_id: str) -> None:
        """Ends `hold`; does nothing if the request is not held, or does not wait any more."""
        if self.is_held(request_id):
            request = self._requests[request_id]
            self._num_held -= 1
            self._lines[request.tenant].release(request)

    def is_held(self, request_id: str) -> bool:
        """Whether a request waits, and is held."""
        request = self._requests.get(request_id)
        return request is not None and self._lines[request.tenant].is_held(request)

    def held_in_rounds(self) -> Iterator[list[Request]]:
        """Yields each tenant's first held request, then each one's second, and so on, which is about the order in which
        they would be popped. The tenant that has had the fewest tokens is in front."""
        lines = [line for line in self._lines.items() if line[1].num_held]
        lines.sort(key=lambda line: self.shares.used(line[0]))
        for requests in zip_longest(*(line.held() for _, line in lines)):
            yield [request for request in requests if request is not None]

    def check_room(self, request: Request) -> None:
        """
        Raises:
          QueueFullError: there is no place for this one.
        """
        line, num_tokens = self._lines.get(request.tenant) or _Line(), len(request.prompt_token_ids)
        requests_left, tokens_left = self._max_requests - len(self), (self._max_tokens or 0) - self._num_tokens
        if requests_left <= 0:
            raise QueueFullError(f"the queue is full ({self._max_requests} requests wait); try again later")
        if self._max_tokens is not None and num_tokens > tokens_left:
            raise QueueFullError(f"the queue is full ({self._num_tokens} tokens of prompts wait); try again later")
        greedy = line.num_requests >= requests_left
        if self._max_tokens is not None:
            greedy |= line.num_tokens + num_tokens > tokens_left and line.num_requests > 0
        if self._is_shared and greedy:
            raise QueueFullError(f"too many requests of this API key wait ({line.num_requests}); try again later")

    def add(self, request: Request) -> None:
        """Lets a request wait, whether or not there is room for it. Its id must be new."""
        if request.tenant not in self._lines:
            self._lines[request.tenant] = _Line()
            self.shares.enter(request.tenant)
        self._lines[request.tenant].add(_Entry(request, self._num_added))
        self._requests[request.id] = request
        self._num_added += 1
        self._num_tokens += len(request.prompt_token_ids)

    def pop(self, may_start: Callable[[str], bool] = lambda _: True) -> Request | None:
        """Takes out who is next, and books what it will probably cost its tenant.

        Args:
          may_start: whether a tenant's requests come into question now.

        Returns:
          The request, or None if nobody waits who may start and is not held.
        """
        ready = (tenant for tenant, line in self._lines.items() if line.num_requests > line.num_held)
        tenants = [tenant for tenant in ready if may_start(tenant)]
        if not tenants:
            return None
        tenant = self.shares.first(tenants)
        request = self._lines[tenant].pop()
        self.shares.charge(tenant, expected_tokens(request))
        self._forget(request)
        return request

    def remove(self, request_id: str) -> bool:
        """Takes out one; says whether it was there."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self.release(request_id)
        self._lines[request.tenant].remove(request)
        self._forget(request)
        return True

    def _forget(self, request: Request) -> None:
        del self._requests[request.id]
        self._num_tokens -= len(request.prompt_token_ids)
        if not self._lines[request.tenant].num_requests:
            del self._lines[request.tenant]
