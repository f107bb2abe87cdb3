"""Finds requests that have run out of time."""

import math
from collections.abc import Iterable

from ..core.errors import QueueTimeoutError, RequestTimeoutError, RoostError
from ..core.request import Request


class Timeouts:
    """Watches the `start_by` and `deadline` of requests; looks at all of them only when the earliest has passed."""

    def __init__(self) -> None:
        self._next = math.inf

    @property
    def next(self) -> float:
        """Earliest time at which a request may have run out of time, in seconds of `time.monotonic`."""
        return self._next

    def watch(self, request: Request) -> None:
        """Takes a request that was just queued into account."""
        self._next = min(self._next, request.start_by, request.deadline)

    def expired(
        self, now: float, waiting: Iterable[Request], running: Iterable[Request]
    ) -> list[tuple[Request, RoostError]]:
        """Returns requests that have run out of time, each with its error. The caller ends them.

        Args:
          now: Current time, in seconds of `time.monotonic`.
          waiting: All requests without a slot.
          running: All requests with a slot.
        """
        if now < self._next:
            return []
        limits = [(each, each.start_by) for each in waiting] + [(each, math.inf) for each in running]
        ends = [(each, _timeout_error(each, start_by, now), min(start_by, each.deadline)) for each, start_by in limits]
        self._next = min((end for _, error, end in ends if error is None), default=math.inf)
        return [(each, error) for each, error, _ in ends if error is not None]


def _timeout_error(request: Request, start_by: float, now: float) -> RoostError | None:
    if now >= request.deadline:
        return RequestTimeoutError("the request took longer than its timeout")
    if now >= start_by:
        return QueueTimeoutError("the request got no slot within its queue timeout")
    return None
