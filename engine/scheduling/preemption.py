"""Preemptible requests: their queue, whose prompts are next, which may enter or must yield, and which tenants pay.

A preemptible request takes only slots and time that no other request needs. It yields its slot when another request
needs one, or when its tenant has had more slots than another tenant for a while, and continues later.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, NamedTuple

from ..types.config import PREFILL_BLOCK, StepLimits
from ..types.errors import QueueFullError
from ..types.request import Batch, DecodeBatch, Replay, Request, error_output
from ..types.snapshot import Snapshot
from .prefill_budget import StepTimes
from .running_request import RunningRequest
from .slots import SlotAssignment

_MAX_PREEMPTIONS: Final = 8
"""Maximum number of slots that requests yield in one step, since their states are copied to the host."""

_LINGER_S: Final = 0.25
"""Seconds for which slots of other requests stay free after their end, since the next requests often follow
immediately."""

_MAX_DELAY: Final = 1.15
"""Maximum ratio of the duration of a decode step with preemptible requests to one without them, while other requests
run."""

_ENTRY_DELAY: Final = 1.05
"""The same ratio for admitting further requests, so that noise in the durations does not admit and preempt the same
ones."""

_TURN_S: Final = 2.0
"""Seconds for which a tenant keeps a slot while a tenant that holds one slot less is waiting for it."""

_LOOK_S: Final = 0.1
"""Minimum seconds between two transfers of slots from one tenant to another."""

_MAX_STARTED_TOKENS: Final = 2**18
"""Number of prompt tokens of preemptible requests that got slots in a step, after which no further request gets one.
Looking up a long prompt takes the engine's time."""

_PROMPTS_SHARE: Final = 1 / 10
"""Maximum time for preemptible prompts while other requests decode, as a share of their decode steps."""

_NO_MEMORY: Final = (
    "a request with precedence got the slot of this one, whose state has no room in host memory; "
    "give --state-cache-gib more memory"
)


class Demand(NamedTuple):
    """Requests for which the next step may run.

    Attributes:
      prompts: Requests whose prompts may be prefilled, oldest first; either all or none are preemptible.
      decoding: Requests that decode.
      num_streams: Number of decoding requests that are not preemptible.
      num_awaited: Number of decoding requests to which the target for the inter-token latency applies: the streams, or
        all if several tenants share the engine without streams.
      is_urgent: Whether the prompts are not preemptible. Tenants take turns separately for either kind.
    """

    prompts: Sequence[RunningRequest]
    decoding: Sequence[RunningRequest]
    num_streams: int
    num_awaited: int
    is_urgent: bool


class Waiting(NamedTuple):
    """A preemptible request without a slot.

    Attributes:
      request: The request, to be replayed if it has had a slot.
      last: The request at the time when it lost its slot; None if it had none.
    """

    request: Request
    last: RunningRequest | None


class Preemption:
    """Runs preemptible requests in the slots and the time that other requests leave.

    A preemptible request gets a free slot when no other request can start, even if the slot is reserved. It yields the
    slot when another request can start, or when a step with all preemptible requests delays the others too much. Its
    tenant is not charged, and the queue's limits don't apply to it.

    Attributes:
      waiting: Preemptible requests without a slot by id; those that have lost one first, then the oldest.
      running: Preemptible requests with a slot by id, oldest first.
      num_preempted: Total times that a request yielded its slot.

    Args:
      assignment: Assigns slots to all other requests.
      limits: Compiled sizes of a step, and the target for the inter-token latency.
      times: Durations of steps.
      max_bytes: Maximum host memory of the states of requests that have lost their slots.
    """

    def __init__(self, assignment: SlotAssignment, limits: StepLimits, times: StepTimes, max_bytes: int) -> None:
        self.waiting: OrderedDict[str, Waiting] = OrderedDict()
        self.running = assignment.lent
        self.num_preempted = 0
        self._assignment = assignment
        self._pool = assignment.pool
        self._limits = limits
        self._times = times
        self._max_bytes = max_bytes
        self._num_expected = 0  # recent maximum of other requests that ran at the same time
        self._expected_until = 0.0
        self._debt = 0.0  # seconds that preemptible prompts owe to other requests that decode
        self._now = self._next_look = 0.0
        self._looks = False
        self._passed = list[str]()  # tenants whose slots are given to others by the next assignment
        self._num_turns = 0
        self._last_turns: dict[str, int] = {}

    @property
    def num_slots(self) -> int:
        """Number of slots that preemptible requests may get in addition to the other running requests."""
        num_others = self._assignment.num_queued
        return self.max_rows(num_others, is_entry=True) - num_others

    def assign(self, now: float) -> None:
        """Gives slots to as many requests as possible. Preemptible requests come last."""
        self._now, self._looks = now, now >= self._next_look
        if self._looks:
            self._next_look = now + _LOOK_S
        num_others = self._assignment.num_queued
        if num_others >= self._num_expected or now >= self._expected_until:
            self._num_expected, self._expected_until = num_others, now + _LINGER_S
        self._assignment.assign(now)
        num_tokens, held = 0, self._held + Counter(self._passed)
        while self._may_lend and num_tokens < _MAX_STARTED_TOKENS:
            request, last = self.pop(held)
            self._assignment.start(request, last, now)
            held[request.tenant] += 1
            num_tokens += len(request.prompt_token_ids)
            del self._passed[:1]
        self._passed.clear()

    def add(self, request: Request) -> None:
        """Queues a request with a new id."""
        self.waiting[request.id] = Waiting(request, None)

    def pop(self, held: Mapping[str, int]) -> Waiting:
        """Removes the next request; there is at least one. It belongs to the tenant that holds the fewest slots.

        Tenants that hold the same number take turns.

        Args:
          held: Number of slots of preemptible requests, by tenant.
        """

        def place(waiting: Waiting) -> tuple[int, int]:
            tenant = waiting.request.tenant
            return held.get(tenant, 0), self._last_turns.get(tenant, 0)

        found = min(self.waiting.values(), key=place)
        self._num_turns += 1
        self._last_turns[found.request.tenant] = self._num_turns
        return self.waiting.pop(found.request.id)

    @property
    def _may_lend(self) -> bool:
        if not (self._pool.free and self.waiting):
            return False
        return bool(self._passed) or self._num_over(is_entry=True) < 0

    @property
    def _held(self) -> Counter[str]:
        """Number of slots of preemptible requests, by tenant."""
        return Counter(each.request.tenant for each in self.running.values())

    @property
    def _num_bytes(self) -> int:
        """Host memory of the states of requests that have lost their slots."""
        return sum(_held_bytes(each.request) for each in self.waiting.values() if each.last is not None)

    def victims(self, *, can_replay: bool) -> list[RunningRequest]:
        """Returns the requests that should yield their slots before the next batch is planned, newest first.

        Args:
          can_replay: Whether requests that have generated a token can continue later.
        """
        lent = (each for each in reversed(self.running.values()) if each.slot not in self._pool.pinned)
        found = (each for each in lent if can_replay or not each.num_tokens_dispatched)
        num_wanted = self._num_wanted
        return list(islice(found, num_wanted)) if num_wanted > 0 else self._next_to_pass(found)

    @property
    def _num_wanted(self) -> int:
        """Number of slots that other requests need from preemptible ones; 0 or less if they need none."""
        num_free = len(self._pool.free)
        num_wanted = self._assignment.num_ready - num_free
        num_wanted = min(num_wanted, max(self._assignment.num_open - num_free, 1))
        return min(max(num_wanted, self._num_over()), _MAX_PREEMPTIONS)

    def _next_to_pass(self, candidates: Iterable[RunningRequest]) -> list[RunningRequest]:
        """Returns the request whose slot is given to a tenant that holds fewer, if one is waiting and no slot is free.

        A slot is given immediately to a tenant that holds at least two fewer. Between tenants that differ by one slot,
        it alternates every `_TURN_S`.

        Args:
          candidates: Requests that may yield their slots, newest first.
        """
        if not (self._looks and self.waiting) or self._may_lend or 2 * self._num_bytes > self._max_bytes:
            return []
        held = self._held
        tenant, most = max(held.items(), key=lambda item: item[1], default=("", 0))
        num_more = most - min(held[each.request.tenant] for each in self.waiting.values())
        own = [each for each in candidates if each.request.tenant == tenant and _keeps_progress(each)]
        if num_more == 1:
            own = [each for each in own if self._now - each.assigned_at >= _TURN_S]
        return own[:1] if num_more > 1 else own[-1:] if num_more == 1 else []

    def preempt(self, running: RunningRequest, snapshot: Snapshot | None) -> None:
        """Takes the slot of one of the `victims`. No batch may be in flight.

        The request then waits for another slot, or ends if its state does not fit in memory.

        Args:
          snapshot: State after the prompt and all generated tokens except the last; None if no token was generated.
        """
        if self._num_wanted <= 0:
            self._passed.append(running.request.tenant)
        self._assignment.free(running)
        self.num_preempted += 1
        request_id = running.request.id
        self.waiting[request_id] = Waiting(_replayed(running, snapshot), running)
        self.waiting.move_to_end(request_id, last=False)
        if self._num_bytes > self._max_bytes:
            del self.waiting[request_id]
            self._assignment.failed.append((request_id, error_output(QueueFullError(_NO_MEMORY))))

    def demand(self, prompts: Sequence[RunningRequest], decoding: Sequence[RunningRequest]) -> Demand:
        """Returns the requests for which the next step may run.

        Preemptible prompts wait for all other prompts, and while they owe time.

        Args:
          prompts: Requests that need prefill, oldest first.
          decoding: Requests that decode.
        """
        num_streams = sum(not each.request.preemptible for each in decoding)
        urgent = [each for each in prompts if not each.request.preemptible]
        is_for_urgent = bool(urgent) or (num_streams > 0 and self._debt > 0)
        is_shared = len({each.request.tenant for each in (*prompts, *decoding)}) > 1
        num_awaited = len(decoding) if is_shared and not num_streams else num_streams
        return Demand(urgent if is_for_urgent else prompts, decoding, num_streams, num_awaited, is_urgent=is_for_urgent)

    def book(self, batch: Batch, rows: Sequence[RunningRequest], demand: Demand) -> None:
        """Records the time of a planned step.

        Preemptible prompts owe their time to other requests that decode. Decode steps pay it off with a share of their
        time.
        """
        if isinstance(batch, DecodeBatch):
            share = _PROMPTS_SHARE * batch.steps * (self._times.decode(len(rows)) or math.inf)
            self._debt = max(self._debt - share, 0.0)
        elif demand.num_streams and all(each.request.preemptible for each in rows):
            self._debt += self._times.step(batch) or 0.0

    def max_rows(self, num_others: int, *, is_entry: bool = False) -> int:
        """Returns the maximum number of rows of a decode step that preemptible requests fill up.

        Rows that are computed anyway cost nothing. Until the duration of a step with only the other requests is
        measured, running preemptible requests stay, since preempting one copies its state, but no further ones are
        admitted.

        Args:
          num_others: Number of other requests with a slot.
          is_entry: Whether further preemptible requests are to get slots, as opposed to running ones keeping theirs.
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
        """Returns the number of requests with a slot beyond the maximum; negative if more fit.

        Args:
          is_entry: Whether further requests are to get slots; see `max_rows`.
        """
        num_others = max(self._assignment.num_queued, self._num_expected)
        return num_others + len(self.running) - self.max_rows(num_others, is_entry=is_entry)


def _replayed(running: RunningRequest, snapshot: Snapshot | None) -> Request:
    """Returns the request to queue for another slot, which replays all tokens that were read back.

    Args:
      snapshot: State after the prompt and all generated tokens except the last; None if no token was generated.
    """
    replay = running.request.replay
    if snapshot is None:
        return replace(running.request, state=running.last_snapshot or running.request.state)
    left = () if replay is None else replay.token_ids[running.num_tokens :]
    return replace(running.request, replay=Replay((*running.token_ids, *left), snapshot))


def _keeps_progress(running: RunningRequest) -> bool:
    """Returns whether a request that loses its slot keeps its progress, except a chunk of its prompt."""
    can_resume = running.last_snapshot is not None and running.request.params.prompt_logprobs is None
    return running.num_tokens > 0 or can_resume or not running.num_prompt_dispatched


def _held_bytes(request: Request) -> int:
    """Returns the host memory of a request's states."""
    replayed = None if request.replay is None else request.replay.snapshot
    return sum(each.num_bytes for each in (request.state, replayed) if each is not None)
