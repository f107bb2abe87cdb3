"""The queue of preemptible requests."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from ..types.request import Request
from .running_request import RunningRequest


class Waiting(NamedTuple):
    """A preemptible request without a slot.

    Attributes:
      request: The request, to be replayed if it has had a slot.
      last: The request at the time when it lost its slot; None if it had none.
    """

    request: Request
    last: RunningRequest | None


class PreemptibleQueue:
    """Preemptible requests without a slot. The next one belongs to the tenant that holds the fewest slots.

    Tenants that hold the same number take turns. Within a tenant, requests that have lost a slot go first, then the
    oldest.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, Waiting] = OrderedDict()
        self._num_requests = Counter[str]()
        self._num_turns = 0
        self._last_turns: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def __iter__(self) -> Iterator[Request]:
        return (each.request for each in self._waiting.values())

    @property
    def tenants(self) -> Collection[str]:
        """Tenants of all requests."""
        return self._num_requests.keys()

    @property
    def num_bytes(self) -> int:
        """Host memory of the states of requests that have lost their slots."""
        return sum(_held_bytes(each.request) for each in self._waiting.values() if each.last is not None)

    def check_room(self, request: Request) -> None:
        """Does nothing: this queue has no limits."""

    def add(self, request: Request) -> None:
        """Adds a request with a new id."""
        self._waiting[request.id] = Waiting(request, None)
        self._num_requests[request.tenant] += 1

    def put_back(self, request: Request, last: RunningRequest) -> None:
        """Adds a request that has lost its slot.

        Args:
          last: The request at the time when it lost its slot.
        """
        self._waiting[request.id] = Waiting(request, last)
        self._waiting.move_to_end(request.id, last=False)
        self._num_requests[request.tenant] += 1

    def pop(self, held: Mapping[str, int]) -> Waiting:
        """Removes the next request; there is at least one.

        Args:
          held: Number of slots of preemptible requests, by tenant.
        """

        def place(waiting: Waiting) -> tuple[int, int]:
            tenant = waiting.request.tenant
            return held.get(tenant, 0), self._last_turns.get(tenant, 0)

        found = min(self._waiting.values(), key=place)
        self._num_turns += 1
        self._last_turns[found.request.tenant] = self._num_turns
        self.remove(found.request.id)
        return found

    def remove(self, request_id: str) -> bool:
        """Removes a request; returns whether it was waiting."""
        found = self._waiting.pop(request_id, None)
        if found is None:
            return False
        tenant = found.request.tenant
        self._num_requests[tenant] -= 1
        if not self._num_requests[tenant]:
            del self._num_requests[tenant]
        return True


def _held_bytes(request: Request) -> int:
    """Returns the host memory of a request's states."""
    replayed = None if request.replay is None else request.replay.snapshot
    return sum(each.num_bytes for each in (request.state, replayed) if each is not None)
