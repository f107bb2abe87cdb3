"""Waiting requests of one tenant."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..core.request import Request

OLDEST_EVERY: Final = 8
"""Number of a tenant's requests that get a slot, one of which is its oldest, so that none waits forever."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A request, and its number in the order of arrival."""

    request: Request
    number: int


class TenantQueue:
    """Requests of one tenant, by priority, then by age.

    Attributes:
      num_requests: Number of requests.
      num_tokens: Total prompt tokens of the requests.
    """

    def __init__(self) -> None:
        self.num_requests = 0
        self.num_tokens = 0
        self._by_priority: dict[int, OrderedDict[str, Entry]] = {}
        self._num_popped = 0
        self._held: set[str] = set()

    def __iter__(self) -> Iterator[Request]:
        return (entry.request for entries in self._by_priority.values() for entry in entries.values())

    @property
    def num_held(self) -> int:
        """Number of held requests, which `pop` passes over."""
        return len(self._held)

    def add(self, entry: Entry) -> None:
        """Adds a request behind all others of its priority."""
        self._by_priority.setdefault(entry.request.priority, OrderedDict())[entry.request.id] = entry
        self._count(entry.request, 1)

    def hold(self, request: Request) -> None:
        """Holds a request until `release`."""
        self._held.add(request.id)

    def release(self, request: Request) -> None:
        """Ends `hold`; does nothing if the request is not held."""
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

    def _first_ready(self, priority: int) -> Entry | None:
        return next((each for each in self._by_priority[priority].values() if not self.is_held(each.request)), None)

    def _count(self, request: Request, sign: int) -> None:
        self.num_requests += sign
        self.num_tokens += sign * len(request.prompt_token_ids)
