"""Preemptible requests: whose prompts are next, which may enter, which give way, and which tenants are charged.

A preemptible request takes only slots and time that no other request wants. It gives its slot up when one does, and
goes on later.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

from ..core.config import PREFILL_BLOCK, EngineStats, StepLimits
from ..core.errors import QueueFullError
from ..core.request import Batch, DecodeBatch, Replay, Request, error_output
from ..core.snapshot import Snapshot
from .plan import RequestOutput
from .prefill_budget import StepTimes
from .running_request import RunningRequest
from .slot_assignment import SlotAssignment

_MAX_PREEMPTIONS: Final = 8
"""Maximum number of slots that requests give up in one step, since the states are copied to the host."""

_LINGER_S: Final = 0.25
"""Seconds for which slots of other requests that have ended stay free, since the next ones often follow at once."""

_MAX_DELAY: Final = 1.15
"""Maximum ratio of a decode step with preemptible requests to one without them, beside other requests."""

_ENTRY_DELAY: Final = 1.05
"""The same ratio for further ones, so that none comes and goes with the noise of the durations."""

_PROMPTS_SHARE: Final = 1 / 10
"""Maximum time for preemptible prompts beside other requests that decode, as a share of their decode steps."""

_NO_MEMORY: Final = (
    "a request with precedence got the slot of this one, whose state has no room in host memory; "
    "give --state-cache-gib more memory"
)


class Preemption:
    """Runs preemptible requests in the slots and the time that other requests leave.

    A preemptible request gets a slot that is free when no other request can start, whatever is reserved. It gives the
    slot up when another request can start, or when a step with all preemptible requests takes the others too long. Its
    tenant is charged for nothing, and the limits of the queue don't hold for it.

    Attributes:
      queue: Preemptible requests without a slot.

    Args:
      assignment: Assigns slots to all other requests.
      limits: Compiled sizes of a step, and the target for the time between two tokens.
      times: Durations of steps.
      max_bytes: Maximum host memory of the states of requests that have lost their slots.
    """

    def __init__(self, assignment: SlotAssignment, limits: StepLimits, times: StepTimes, max_bytes: int) -> None:
        self.queue = PreemptibleQueue()
        self._assignment = assignment
        self._pool = assignment.pool
        self._limits = limits
        self._times = times
        self._max_bytes = max_bytes
        self._num_expected = 0  # the most others that have run at a time lately
        self._expected_until = 0.0
        self._debt = 0.0  # of preemptible prompts to others that decode, in seconds
        self._num_slots = 0  # by the last assignment
        self._num_preempted = 0

    @property
    def stats(self) -> EngineStats:
        """Statistics of preemptible requests. All others are left at 0."""
        return EngineStats(
            num_preemptible_running=self._assignment.num_lent,
            num_preemptible_waiting=len(self.queue),
            num_preemptible_slots=self._num_slots if self._assignment.queued else self._pool.size,
            preemptions=self._num_preempted,
        )

    def assign(self, now: float) -> list[RequestOutput]:
        """Gives slots to as many requests as possible, to preemptible ones last.

        Returns:
          Last outputs of requests that could not be started.
        """
        num_others = len(self._assignment.queued)
        if num_others >= self._num_expected or now >= self._expected_until:
            self._num_expected, self._expected_until = num_others, now + _LINGER_S
        failed = self._assignment.assign(now)
        while self._pool.num_free and len(self.queue) and self._num_over(is_entry=True) < 0:
            failed += self._assignment.start(*self.queue.pop(), now)
        num_others = len(self._assignment.queued)
        self._num_slots = self.max_rows(num_others, is_entry=True) - num_others
        return failed

    def victims(self, *, can_replay: bool) -> list[RunningRequest]:
        """Returns the requests that should give their slots up before the next batch is planned, the newest first.

        Args:
          can_replay: Whether requests can go on that have generated a token.
        """
        num_free = self._pool.num_free
        num_wanted = self._assignment.num_ready - num_free
        num_wanted = min(num_wanted, max(self._assignment.num_open - num_free, 1))
        num_wanted = min(max(num_wanted, self._num_over()), _MAX_PREEMPTIONS)
        running = (each for each in reversed(self._assignment.running.values()) if each.request.preemptible)
        found = (each for each in running if can_replay or not each.num_tokens_dispatched)
        found = (each for each in found if not self._pool.is_pinned(each.slot))
        return list(islice(found, max(num_wanted, 0)))

    def preempt(self, running: RunningRequest, snapshot: Snapshot | None) -> list[RequestOutput]:
        """Takes the slot of one of the `victims`, which waits for another one; no batch may be in flight.

        Args:
          snapshot: State after the prompt and all generated tokens but the last one; None if there is no token.

        Returns:
          The last output of the request if its state has no room in memory.
        """
        self._assignment.free(running)
        self._num_preempted += 1
        self.queue.put_back(_replayed(running, snapshot), running)
        if self.queue.num_bytes <= self._max_bytes:
            return []
        self.queue.remove(running.request.id)
        return [(running.request.id, error_output(QueueFullError(_NO_MEMORY)))]

    def demand(self, prompts: Sequence[RunningRequest], decoding: Sequence[RunningRequest]) -> "Demand":
        """Returns for whom the next step may run. Preemptible prompts wait for all others, and while they are in debt.

        Args:
          prompts: Requests that need prefill, oldest first.
          decoding: Requests that decode.
        """
        num_streams = sum(not each.request.preemptible for each in decoding)
        urgent = [each for each in prompts if not each.request.preemptible]
        is_for_urgent = bool(urgent) or (num_streams > 0 and self._debt > 0)
        return Demand(urgent if is_for_urgent else prompts, decoding, num_streams, is_urgent=is_for_urgent)

    def book(self, batch: Batch, rows: Sequence[RunningRequest], demand: "Demand") -> None:
        """Books the time of a planned step.

        Preemptible prompts are in debt to others that decode, which pay it off with a share of their own time.
        """
        if isinstance(batch, DecodeBatch):
            share = _PROMPTS_SHARE * batch.steps * (self._times.decode(len(rows)) or math.inf)
            self._debt = max(self._debt - share, 0.0)
        elif demand.num_streams and all(each.request.preemptible for each in rows):
            self._debt += self._times.step(batch) or 0.0

    def max_rows(self, num_others: int, *, is_entry: bool = False) -> int:
        """Returns the number of rows that a decode step may have if preemptible requests fill it up.

        Rows that are computed anyway cost nothing. While it is unknown what a step takes with the others alone, those
        that run stay, since each would copy its state, and no others come, until the step is measured.

        Args:
          num_others: Number of other requests with a slot.
          is_entry: Whether further preemptible requests are to get slots, rather than those that run to keep theirs.
        """
        target_s, slots = self._limits.itl_target_s, self._pool.size
        if not num_others or target_s == 0:
            return slots
        sizes = [rows for rows in (*self._limits.decode_rows, slots) if rows >= num_others]
        if not self._times.has_decode(num_others):
            return sizes[0] if is_entry else slots
        room = (_ENTRY_DELAY if is_entry else _MAX_DELAY) * (self._times.decode(num_others) or 0.0)
        if target_s is not None:
            room = max(room, target_s / self._times.overrun - (self._times.prefill(PREFILL_BLOCK) or 0.0))
        fitting = (rows for rows in reversed(sizes) if (self._times.decode(rows) or 0.0) <= room)
        return next(fitting, sizes[0])

    def _num_over(self, *, is_entry: bool = False) -> int:
        """Returns by how many the requests with a slot are too many beside the others; negative: too few.

        Args:
          is_entry: Whether further ones are to get slots; see `max_rows`.
        """
        num_others = max(len(self._assignment.queued), self._num_expected)
        return num_others + self._assignment.num_lent - self.max_rows(num_others, is_entry=is_entry)


class Demand(NamedTuple):
    """Requests for which the next step may run.

    Attributes:
      prompts: Requests whose prompts may be prefilled, oldest first; all or none of them are preemptible.
      decoding: Requests that decode.
      num_streams: Number of those that are not preemptible, for which the target for the time between two tokens holds.
      is_urgent: Whether the prompts are not preemptible: tenants are charged for them, and short ones go first.
    """

    prompts: Sequence[RunningRequest]
    decoding: Sequence[RunningRequest]
    num_streams: int
    is_urgent: bool

    def num_waiting(self, *groups: Iterable[RunningRequest]) -> int:
        """Returns the most prompts of a group for which tokens may wait longer: beside streams, all but preemptible."""
        return max(1, *(sum(not (self.num_streams and each.request.preemptible) for each in group) for group in groups))


class _Waiting(NamedTuple):
    """A preemptible request without a slot.

    Attributes:
      request: The request, to be replayed if it has had a slot.
      last: The request as it was when it lost its slot.
    """

    request: Request
    last: RunningRequest | None


class PreemptibleQueue:
    """Preemptible requests without a slot, oldest first; those that have lost one are ahead of all others."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._waiting

    def __iter__(self) -> Iterator[Request]:
        return (each.request for each in self._waiting.values())

    @property
    def num_bytes(self) -> int:
        """Host memory of the states of requests that have lost their slots."""
        replays = (each.request.replay for each in self._waiting.values() if each.last is not None)
        return sum(each.snapshot.num_bytes for each in replays if each is not None and each.snapshot is not None)

    def check_room(self, request: Request) -> None:
        """Does nothing: there is always room."""

    def add(self, request: Request) -> None:
        """Adds a request with a new id."""
        self._waiting[request.id] = _Waiting(request, None)

    def put_back(self, request: Request, last: RunningRequest) -> None:
        """Adds a request that has lost its slot.

        Args:
          last: The request as it was when it lost its slot.
        """
        self._waiting[request.id] = _Waiting(request, last)
        self._waiting.move_to_end(request.id, last=False)

    def pop(self) -> _Waiting:
        """Removes the next request; there is at least one."""
        return self._waiting.popitem(last=False)[1]

    def remove(self, request_id: str) -> bool:
        """Removes a request; returns whether it was waiting."""
        return self._waiting.pop(request_id, None) is not None


def _replayed(running: RunningRequest, snapshot: Snapshot | None) -> Request:
    """Returns a request as it waits for another slot, after all tokens that were read back."""
    replay = running.request.replay
    if snapshot is not None:
        left = () if replay is None else replay.token_ids[running.num_tokens :]
        replay = Replay((*running.token_ids, *left), snapshot)
    return replace(running.request, replay=replay)
