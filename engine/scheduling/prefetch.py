"""Decides whose prompts are searched for on disk while their requests wait for a slot. Pure host Python."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

from ..core.request import Request
from ..core.snapshot import Snapshot
from ..prefix_cache.cache import PrefixCache
from ..prefix_cache.prefix_key import PrefixKey
from .waiting_queue import WaitingQueue

_MAX_SECONDS: Final = 5.0
"""Time after which a search is no longer waited for: reading the prompt anew would have been faster."""


@dataclass(eq=False, slots=True)
class Fetch:
    """A waiting request whose prompt is searched for in the tier below the prefix cache.

    Attributes:
      request, key: the request and its prompt.
      above: number of tokens that need not be searched for, as their state is in memory.
      started: when the search began, in seconds.
      found: what the search has found.
    """

    request: Request
    key: PrefixKey
    above: int = 0
    started: float = math.inf
    found: Snapshot | None = None


class Prefetcher:
    """Holds requests in the queue, where they keep their places, until it is known what the tier below has of them.

    A search begins as soon as there is room, in about the order in which requests will get slots. Half of the room is
    for tenants that take none of it yet. Memory is looked up when a request gets its slot, so what others have left
    there meanwhile counts, too. If a search takes too long, nobody is held until it ends.

    Args:
      waiting: the queue.
      cache: what searches can be spared by, and how many there may be; None holds nobody.
    """

    def __init__(self, waiting: WaitingQueue, cache: PrefixCache | None) -> None:
        self._waiting = waiting
        self._cache = cache
        self._max_fetches = 0 if cache is None else cache.max_fetches
        self._queued: dict[str, Fetch] = {}
        self._running: dict[Fetch, None] = {}
        self._done: dict[str, Fetch] = {}
        self._forks: dict[str, list[str]] = {}
        self._is_stuck = False
        self._is_planned = True

    @property
    def is_planned(self) -> bool:
        """Whether nothing has happened since `plan`, so that it would change nothing before `timeout`."""
        return self._is_planned

    @property
    def timeout(self) -> float:
        """When the oldest search will have taken too long, in seconds; infinite if nobody is held by one."""
        started = [] if self._is_stuck else [fetch.started for fetch in self._running]
        return min(started, default=math.inf) + _MAX_SECONDS

    def offer(self, request: Request) -> None:
        """Holds a request that was just queued, if there may be more of its prompt below than in memory."""
        if self._cache is None or not self._max_fetches or self._is_stuck or request.params.prompt_logprobs is not None:
            return
        parent = request.fork_of
        if parent is not None and parent in self._waiting:  # it will read the prompt for this one
            if self._waiting.is_held(parent):
                self._forks.setdefault(parent, []).append(request.id)
                self._waiting.hold(request.id)
            return
        fetch = Fetch(request, PrefixKey.of(request.prompt_token_ids, request.cache_salt))
        if not self._needs_search(fetch):
            self._done[request.id] = fetch
            return
        self._queued[request.id] = fetch
        self._waiting.hold(request.id)
        self._is_planned = False

    def plan(self, now: float) -> list[Fetch]:
        """Returns the searches that are to begin."""
        self._is_planned = True
        self._is_stuck = any(now >= fetch.started + _MAX_SECONDS for fetch in self._running)
        if self._is_stuck:
            for request_id in [*self._queued, *(fetch.request.id for fetch in self._running)]:
                self._release(request_id)
        return self._begin(now) if self._queued else []

    def commit(self, fetch: Fetch, found: Snapshot | None) -> None:
        """Books what a search has found."""
        self._is_planned = False
        del self._running[fetch]
        if self._waiting.get(fetch.request.id) is fetch.request:
            fetch.found = found
            self._done[fetch.request.id] = fetch
            self._release(fetch.request.id)

    def take(self, request_id: str) -> Fetch | None:
        """Gives a request that does not wait any more its key, and what was found for it, if that is known."""
        self._is_planned = False
        self._release(request_id)
        return self._done.pop(request_id, None)

    def _begin(self, now: float) -> list[Fetch]:
        begun: list[Fetch] = []
        found = (fetch for fetch in self._done.values() if fetch.found is not None)
        taken = Counter(fetch.request.tenant for fetch in (*self._running, *found))
        for requests in self._waiting.held_in_rounds():
            for request in requests:
                fetch = self._queued.get(request.id)
                room = self._max_fetches // 2 if taken[request.tenant] else self._max_fetches
                if fetch is None or taken.total() >= room:
                    continue
                if self._needs_search(fetch):
                    fetch.started = now
                    taken[request.tenant] += 1
                    self._running[self._queued.pop(request.id)] = None
                    begun.append(fetch)
                else:
                    self._done[request.id] = fetch
                    self._release(request.id)
            if taken.total() >= self._max_fetches // 2:  # in later rounds, each tenant takes some of it
                break
        return begun

    def _needs_search(self, fetch: Fetch) -> bool:
        """Whether there may be more below; what was published since it was queued need not be searched for."""
        assert self._cache is not None
        state = fetch.request.state
        fetch.above = max(self._cache.matched_length(fetch.key), 0 if state is None else state.length)
        return fetch.above < len(fetch.key)

    def _release(self, request_id: str) -> None:
        """Lets a request, and those that wait for it to read their prompt, have slots."""
        self._queued.pop(request_id, None)
        for each in (request_id, *self._forks.pop(request_id, ())):
            self._waiting.release(each)
