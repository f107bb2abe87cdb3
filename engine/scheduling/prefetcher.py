"""Searches on disk for the prompts of requests while they wait for a slot."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

from ..prefix_cache.cache import PrefixCache, PrefixKey
from ..types.request import Request
from ..types.snapshot import Snapshot
from .slots import WaitingQueue

_MAX_SECONDS: Final = 5.0
"""Seconds after which requests no longer wait for a search, since prefill would have been faster."""


@dataclass(eq=False, slots=True)
class Fetch:
    """Search on disk for the prompt of a waiting request.

    Attributes:
      request: The waiting request.
      key: Its prompt.
      above: Number of tokens that a snapshot in memory covers; only longer snapshots are searched for.
      started: Time at which the search began, in seconds.
      found: Snapshot that was found.
    """

    request: Request
    key: PrefixKey
    above: int = 0
    started: float = math.inf
    found: Snapshot | None = None


class Prefetcher:
    """Holds requests at their places in the queue until their prompts have been searched for on disk.

    Searches begin approximately in the order in which requests will get slots, up to the cache's limit of concurrent
    searches. Half of them are for tenants that have none. Memory is searched when a request gets its slot, so that
    snapshots of requests that ended during the search are found, too. If a search takes too long, requests are not held
    until it ends.

    Attributes:
      is_planned: Whether nothing has changed since `plan`, so that `plan` has nothing to do before `timeout`.

    Args:
      queue: Requests without a slot.
      cache: A prefix cache with a tier on disk.
      max_fetches: Maximum number of searches at a time; see `CacheTier`.
    """

    def __init__(self, queue: WaitingQueue, cache: PrefixCache, max_fetches: int) -> None:
        self.is_planned = True
        self._queue = queue
        self._cache = cache
        self._max_fetches = max_fetches
        self._queued: dict[str, Fetch] = {}
        self._running: dict[Fetch, None] = {}
        self._done: dict[str, Fetch] = {}
        self._forks: dict[str, list[str]] = {}
        self._is_stuck = False

    @property
    def timeout(self) -> float:
        """Time at which the oldest search takes too long, in seconds; infinite if no search holds a request."""
        started = [] if self._is_stuck else [fetch.started for fetch in self._running]
        return min(started, default=math.inf) + _MAX_SECONDS

    def offer(self, request: Request) -> None:
        """Holds a newly queued request, if the disk may have a longer prefix of its prompt than memory."""
        if self._is_stuck or request.params.prompt_logprobs is not None:
            return
        parent = self._queue.waiting.get(request.fork_of or "")
        if parent is not None:  # it prefills the prompt for both
            if self._queue.is_held(parent.request):
                self._forks.setdefault(parent.request.id, []).append(request.id)
                self._queue.hold(request.id)
            return
        fetch = Fetch(request, PrefixKey.of(request.prompt_token_ids, request.cache_salt))
        if not self._needs_search(fetch):
            self._done[request.id] = fetch
            return
        self._queued[request.id] = fetch
        self._queue.hold(request.id)
        self.is_planned = False

    def plan(self, now: float) -> list[Fetch]:
        """Returns the searches that are to begin, and records them as running.

        Args:
          now: Current time, in seconds of `time.monotonic`.
        """
        self.is_planned = True
        self._is_stuck = any(now >= fetch.started + _MAX_SECONDS for fetch in self._running)
        if self._is_stuck:
            for request_id in [*self._queued, *(fetch.request.id for fetch in self._running)]:
                self._release(request_id)
        return self._begin(now) if self._queued else []

    def commit(self, fetch: Fetch, found: Snapshot | None) -> None:
        """Records the result of a search, and releases its request."""
        self.is_planned = False
        del self._running[fetch]
        waiting = self._queue.waiting.get(fetch.request.id)
        if waiting is not None and waiting.request is fetch.request:
            fetch.found = found
            self._done[fetch.request.id] = fetch
            self._release(fetch.request.id)

    def take(self, request_id: str) -> tuple[PrefixKey, Snapshot | None] | None:
        """Removes a request that has stopped waiting; returns its key and what was found, if its search has ended."""
        self.is_planned = False
        self._release(request_id)
        fetch = self._done.pop(request_id, None)
        return None if fetch is None else (fetch.key, fetch.found)

    def _begin(self, now: float) -> list[Fetch]:
        started: list[Fetch] = []
        found = (fetch for fetch in self._done.values() if fetch.found is not None)
        taken = Counter(fetch.request.tenant for fetch in (*self._running, *found))
        for requests in self._queue.held_in_rounds():
            for request in requests:
                fetch = self._queued.get(request.id)
                room = self._max_fetches // 2 if taken[request.tenant] else self._max_fetches
                if fetch is None or taken.total() >= room:
                    continue
                if self._needs_search(fetch):
                    fetch.started = now
                    taken[request.tenant] += 1
                    self._running[self._queued.pop(request.id)] = None
                    started.append(fetch)
                else:
                    self._done[request.id] = fetch
                    self._release(request.id)
            if taken.total() >= self._max_fetches // 2:  # every tenant of a later round already has searches
                break
        return started

    def _needs_search(self, fetch: Fetch) -> bool:
        """Returns whether the disk may have a longer prefix than memory has now."""
        state = fetch.request.state
        fetch.above = max(self._cache.matched_length(fetch.key), 0 if state is None else state.length)
        return fetch.above < len(fetch.key)

    def _release(self, request_id: str) -> None:
        """Releases a request, and the forks that wait for it to prefill their prompt."""
        self._queued.pop(request_id, None)
        for each in (request_id, *self._forks.pop(request_id, ())):
            self._queue.release(each)
