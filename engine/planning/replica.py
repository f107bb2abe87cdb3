"""Discrete-event simulation of a replica.

A replica is modelled as a fluid: while prompts wait, decode steps and prefill steps alternate as in the scheduler, so
that tokens and prompts proceed at constant rates until a prompt or a reply ends. This takes some three events per
request, independent of the length of its reply. benchmarks/fleet.md compares it with real servers.

The clock of a discrete-event simulation.
"""

import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Final, Protocol, runtime_checkable

from ..scheduling.prefill_budget import OVERRUN, prefill_seconds
from ..types.config import PREFILL_BLOCK

LAG_CYCLES: Final = 0.5
"""Cycles between the arrival at a busy replica and the first prefill step: the rest of the running step and the step
that is already dispatched, minus the decode step that the fluid counts with a prompt's last chunk."""

OVERHEAD_S: Final = 0.004
"""Seconds of a request outside of the device: HTTP, tokenizer, queues between threads."""

INTERVAL_S: Final = 1e-4
"""Resolution of the inter-token latencies that a replica counts."""

_EPSILON: Final = 1e-9


class Clock:
    """Calls functions at simulated times. Calls for the same time run in the order in which they were added.

    Attributes:
      now: Seconds since the start.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        """Calls a function after some seconds."""
        heappush(self._events, (self.now + seconds, next(self._numbers), call))

    def run(self, until: float) -> None:
        """Makes all calls before a time, and ends at that time; an infinite one ends with the last call."""
        while self._events and self._events[0][0] < until:
            self.now, _, call = heappop(self._events)
            call()
        if until < float("inf"):
            self.now = until


@dataclass(frozen=True, slots=True)
class Chip:
    """Device of a replica.

    Attributes:
      slots: Number of requests that run at a time.
      step_s: Seconds of a decode step, which gives each running request a token.
      prefill_tokens_per_s: Prompt tokens per second while no request decodes.
      cached_prefixes: Number of prefixes that fit into its prefix cache.
      max_queue: Maximum number of requests that wait for a slot; further ones are refused.
      chunk: Maximum number of prompt tokens in a step.
      steps_s: Seconds of a decode step by its number of requests, from 0 to `slots`; empty uses `step_s` for all.
      itl_target_s: Target for the inter-token latency during prefill; 0 stands for throughput, None for the scheduler's
        default.
      overrun: Ratio of inter-token latencies to the planned ones; see `Overrun`.
    """

    slots: int
    step_s: float
    prefill_tokens_per_s: float
    cached_prefixes: int
    max_queue: int = 256
    chunk: int = 512
    steps_s: tuple[float, ...] = ()
    itl_target_s: float | None = None
    overrun: float = OVERRUN

    def decode(self, num_requests: int) -> float:
        """Returns the seconds of a decode step with this number of requests."""
        return self.steps_s[num_requests] if self.steps_s else self.step_s

    quiet = decode  # a step takes the same time during prefill

    def prefill_s(self, num_prefilling: int, num_decoding: int) -> float:
        """Returns the seconds of prefill that the scheduler allows between two decode steps."""
        return prefill_seconds(self.itl_target_s, self, num_decoding, num_prefilling)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request.

    Attributes:
      at: Time in seconds from the start.
      output_tokens: Length of its reply.
    """

    at: float
    prefix: int
    output_tokens: int


@runtime_checkable
class Prompts(Protocol):
    """Lengths of prompts."""

    def prefill_tokens(self, arrival: Arrival, *, is_cached: bool) -> float:
        """Returns the prompt tokens that are prefilled for a request whose prefix is cached or not."""


@dataclass(eq=False, slots=True)
class SimulatedRequest:
    """A request in the simulated fleet.

    Attributes:
      first: Time of its first token, in seconds; None before.
      end: Time of its last token, or of its failure; None before.
      prefill_left: Prompt tokens that are not prefilled yet.
      was_hit: Whether its prefix was cached.
      tries: Number of times that it was sent to a replica.
      failure: Reason why it failed permanently; "" if it did not.
    """

    arrival: Arrival
    first: float | None = None
    end: float | None = None
    prefill_left: float = 0.0
    was_hit: bool = False
    tries: int = 0
    failure: str = ""

    @property
    def ttft_s(self) -> float:
        assert self.first is not None
        return self.first - self.arrival.at


class Replica:
    """One replica.

    Attributes:
      load: Number of its requests, including waiting ones.
      is_open: Whether it accepts requests.
      intervals: Number of tokens by the time since the previous token, in units of `INTERVAL_S`. During prefill, that
        time is the 99th percentile.

    Args:
      clock: Clock of the simulation.
      prompts: Lengths of prompts.
    """

    def __init__(self, clock: Clock, number: int, chip: Chip, prompts: Prompts) -> None:
        self.number = number
        self.is_open = True
        self.load = 0
        self.intervals: defaultdict[int, float] = defaultdict(float)
        self._clock, self._chip, self._prompts = clock, chip, prompts
        self._waiting: deque[SimulatedRequest] = deque()
        self._starting: set[SimulatedRequest] = set()
        self._prefilling: list[SimulatedRequest] = []
        self._decoding: list[tuple[float, int, SimulatedRequest]] = []
        self._cache: OrderedDict[int, None] = OrderedDict()
        self._steps = self._at = 0.0
        self._decode_rate = self._prefill_rate = 0.0
        self._num_jobs = self._version = 0

    @property
    def waiting(self) -> int:
        """Number of requests without a slot."""
        return len(self._waiting)

    @property
    def used(self) -> float:
        """Share of slots in use."""
        return (self.load - len(self._waiting)) / self._chip.slots

    def has(self, prefix: int) -> bool:
        return prefix in self._cache

    def remember(self, prefix: int) -> None:
        """Adds a prefix to the cache, and evicts the least recently used one if the cache is full."""
        self._cache[prefix] = None
        self._cache.move_to_end(prefix)
        if len(self._cache) > self._chip.cached_prefixes:
            self._cache.popitem(last=False)

    def submit(self, job: SimulatedRequest) -> bool:
        """Accepts a request; returns False if the queue is full."""
        if self.load >= self._chip.slots + self._chip.max_queue:
            return False
        job.tries += 1
        self.load += 1
        if self.load > self._chip.slots:
            self._waiting.append(job)
        else:
            self._start(job, LAG_CYCLES if self._decoding or self._prefilling else 0.0)
        return True

    def kill(self) -> list[SimulatedRequest]:
        """Stops the replica immediately; returns its requests, none of which will end here."""
        self.is_open = False
        self._version += 1
        lost = [*self._waiting, *self._starting, *self._prefilling, *(job for _, _, job in self._decoding)]
        self._waiting.clear()
        self._starting.clear()
        self._prefilling, self._decoding, self.load = [], [], 0
        return lost

    def _start(self, job: SimulatedRequest, lag: float) -> None:
        """Gives a request a slot; its prefill begins after some steps."""
        prefix = job.arrival.prefix
        job.was_hit = prefix in self._cache
        self.remember(prefix)
        job.prefill_left = self._prompts.prefill_tokens(job.arrival, is_cached=job.was_hit)
        self._starting.add(job)
        self._clock.call_later(lag * self._cycle() + OVERHEAD_S, lambda: self._enter(job))

    def _enter(self, job: SimulatedRequest) -> None:
        if job not in self._starting:  # the replica was killed
            return
        self._starting.remove(job)
        self._proceed()
        self._prefilling.append(job)
        self._plan()

    def _cycle(self) -> float:
        """Returns the seconds from one decode step to the next."""
        return 1 / self._decode_rate if self._decode_rate else self._chip.decode(1)

    def _proceed(self) -> None:
        """Records the progress since the last event."""
        elapsed, self._at = self._clock.now - self._at, self._clock.now
        self._steps += elapsed * self._decode_rate
        if self._decode_rate:
            overrun = self._chip.overrun if self._prefilling else 1.0
            interval = round(overrun / (self._decode_rate * INTERVAL_S))
            self.intervals[interval] += elapsed * self._decode_rate * len(self._decoding)
        if self._prefilling:
            self._prefilling[0].prefill_left -= elapsed * self._prefill_rate

    def _plan(self) -> None:
        """Sets the new rates, and the time of the next event."""
        self._prefilling.sort(key=lambda job: job.prefill_left)
        self._prefill_rate, self._decode_rate = self._rates()
        next_s = math.inf
        if self._prefilling:
            next_s = self._prefilling[0].prefill_left / self._prefill_rate
        if self._decoding:
            next_s = min(next_s, (self._decoding[0][0] - self._steps) / self._decode_rate)
        self._version += 1
        if next_s < math.inf:
            version = self._version
            self._clock.call_later(max(next_s, 0.0), lambda: self._on_event(version))

    def _on_event(self, version: int) -> None:
        if version != self._version:
            return
        self._proceed()
        now = self._clock.now
        while self._prefilling and self._prefilling[0].prefill_left <= _EPSILON * self._chip.prefill_tokens_per_s:
            job = self._prefilling.pop(0)
            job.first = now
            self._num_jobs += 1
            heappush(self._decoding, (self._steps + job.arrival.output_tokens - 1, self._num_jobs, job))
        while self._decoding and self._decoding[0][0] <= self._steps + _EPSILON / self._chip.step_s:
            heappop(self._decoding)[2].end = now
            self.load -= 1
            if self._waiting:
                self._start(self._waiting.popleft(), 0.0)
        self._plan()

    def _rates(self) -> tuple[float, float]:
        """Returns prompt tokens and decode steps per second."""
        chip, num_prefilling, num_decoding = self._chip, len(self._prefilling), len(self._decoding)
        step_s = chip.decode(num_decoding)
        if not num_prefilling:
            return 0.0, 1 / step_s if num_decoding else 0.0
        if not num_decoding:
            return chip.prefill_tokens_per_s, 0.0
        room = chip.prefill_s(num_prefilling, num_decoding) * chip.prefill_tokens_per_s
        left = sum(job.prefill_left for job in self._prefilling)
        tokens = min(max(room // PREFILL_BLOCK * PREFILL_BLOCK, PREFILL_BLOCK), max(left, PREFILL_BLOCK))
        cycle = step_s + tokens / chip.prefill_tokens_per_s
        return tokens / cycle, 1 / cycle
