"""Finds the number of replicas that serve an expected load within targets, and the rate of one that is saturated.

A replica is simulated as a fluid: while prompts wait, decode steps and prefill steps alternate as in the scheduler, so
that tokens and prompts proceed at constant rates until a prompt or a reply ends. This takes some three events per
request, independent of the length of its reply. benchmarks/fleet.md compares it with real servers.

Loads that a replica serves together are a mix, whose steps have the durations of `roost serve --simulate`. Behind a
Service, every one of N replicas gets a random share of a Poisson process, which is a Poisson process with an Nth of the
rate. One simulated replica is therefore sufficient. Routers that consider queues do better.
"""

import math
import random
import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import fsum
from statistics import fmean
from typing import Final

from ..capacity.roofline import PREFILL_CHUNK, Roofline
from ..devices.platform import TPU
from ..scheduling.prefill_budget import OVERRUN, prefill_seconds, target_seconds
from ..simulation import EFFICIENCIES, StepDurations
from ..types.config import MAX_PREFILL_ROWS, PREFILL_BLOCK, Simulation
from ..types.errors import ConfigError
from ..worker.served import part_rows

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
      overrun: Ratio of inter-token latencies to the planned ones; see `StepTimes`.
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
        return prefill_seconds(self.itl_target_s, self, num_decoding, num_prefilling, num_decoding)


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
      prefill_tokens: Returns the prompt tokens that are prefilled for a request, whose prefix is cached or not.
    """

    def __init__(
        self, clock: Clock, number: int, chip: Chip, prefill_tokens: Callable[[SimulatedRequest], float]
    ) -> None:
        self.number = number
        self.is_open = True
        self.load = 0
        self.intervals: defaultdict[int, float] = defaultdict(float)
        self._clock, self._chip, self._prefill_tokens = clock, chip, prefill_tokens
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
        job.prefill_left = self._prefill_tokens(job)
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


MODEL_ERROR: Final = 0.03
"""Maximum relative error of throughput and request times compared with real servers on a simulated device, from
benchmarks/fleet.md. It does not include the error of the durations of steps."""

MAX_USE: Final = 0.95
"""Maximum share of a replica's time; with less idle time, queues take minutes to drain."""

STEP_ERRORS: Final = {True: 1.3, False: 2.0}
"""Ratio by which steps may take longer than planned, by whether programs were compiled for the device. A judgement, as
none was run: a schedule counts no waits, and the durations of other devices are estimates."""

_TRIES: Final = 9

_ROUNDS: Final = 2
"""Number of first requests that are not counted, in slots."""

_COUNTED: Final = 2000
"""Number of requests that are counted after them."""

_SEEDS: Final = (1, 2, 3)
"""Seeds of arrivals, all of which must keep the targets: if steps of few requests are short, a burst can cause long
steps, and these an accumulation of requests that persists."""

_LOAD: Final = re.compile(r"(\d{1,7})\+(\d{1,7})@(\d{1,9}(?:\.\d{1,9})?)/s")
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)")


@dataclass(frozen=True, slots=True)
class ExpectedLoad:
    """Requests of one length.

    Attributes:
      prompt_tokens: Tokens of each prompt that the prefix cache does not have.
      output_tokens: Tokens of each reply.
      requests_per_s: Mean of their arrivals, which are independent of each other (a Poisson process).
    """

    prompt_tokens: int
    output_tokens: int
    requests_per_s: float

    @classmethod
    def parse(cls, text: str) -> "ExpectedLoad":
        """Parses a load such as "512+128@40/s".

        Raises:
          ConfigError: The text is not a load.
        """
        found = _LOAD.fullmatch(text)
        load = cls(int(found[1]), int(found[2]), float(found[3])) if found else None
        if load is None or not (load.prompt_tokens and load.output_tokens and load.requests_per_s):
            raise ConfigError(f"load must be IN+OUT@RATE/s, such as 512+128@40/s, not {text!r}")
        return load

    def __str__(self) -> str:
        return f"{self.prompt_tokens}+{self.output_tokens}@{self.requests_per_s:g}/s"


@dataclass(frozen=True, slots=True)
class Targets:
    """99th percentiles that each load must keep.

    Attributes:
      ttft_s: Seconds from the arrival of a request to its first token.
      itl_s: Seconds between two tokens of a request.
    """

    ttft_s: float
    itl_s: float

    @classmethod
    def parse(cls, ttft: str, itl: str) -> "Targets":
        """Parses times such as "1s" and "60ms".

        Raises:
          ConfigError: One of them is not a time.
        """
        return cls(_seconds("ttft-p99", ttft), _seconds("itl-p99", itl))


def _seconds(name: str, text: str) -> float:
    found = _TIME.fullmatch(text)
    seconds = float(found[1]) * (1e-3 if found[2] == "ms" else 1.0) if found else 0.0
    if not seconds:
        raise ConfigError(f"{name} must be a time such as 1s or 60ms, not {text!r}")
    return seconds


@dataclass(frozen=True, slots=True)
class SimulatedRate:
    """Outcome of simulating a replica at a rate.

    Attributes:
      ttft_p99_s: Maximum of the loads' 99th percentiles of the time to first token; infinite if any request is refused.
      itl_p99_s: 99th percentile of the inter-token latency.
      slots_used, waiting: Mean number of requests with a slot, and of requests that wait for one.
    """

    requests_per_s: float
    ttft_p99_s: float
    itl_p99_s: float
    slots_used: float
    waiting: float

    def keeps(self, targets: Targets) -> bool:
        """Returns whether both percentiles are within the targets."""
        return self.ttft_p99_s <= targets.ttft_s and self.itl_p99_s <= targets.itl_s


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Replicas for a load.

    Attributes:
      replica: One replica at the highest rate that keeps the targets, with the seed of the longest time to first token.
      replicas: Number of replicas that serve the load.
      chips: Number of their chips.
      is_compiled: Whether durations of steps come from programs compiled for the device, rather than from an estimate.
      replicas_if_slower: Number of replicas if steps take longer by `step_error`; None if the targets are then missed.
    """

    replica: SimulatedRate
    replicas: int
    chips: int
    is_compiled: bool
    replicas_if_slower: int | None

    @property
    def step_error(self) -> float:
        """Ratio by which steps may take longer than planned."""
        return STEP_ERRORS[self.is_compiled]


@dataclass(frozen=True, slots=True)
class Mix:
    """Loads that a replica serves together. The prefix of an arrival is the index of its load, and is never cached.

    Attributes:
      chip: Device of a replica.
      prompts_s: Seconds of the prefill steps of a prompt of each load, whose first token is sampled alone.
      first_token_s: Seconds of a step that samples first tokens, of one prompt or of several.
    """

    loads: tuple[ExpectedLoad, ...]
    chip: Chip
    prompts_s: tuple[float, ...]
    first_token_s: float

    @property
    def requests_per_s(self) -> float:
        """Requests per second of all loads together."""
        return fsum(load.requests_per_s for load in self.loads)

    @property
    def busy_s(self) -> float:
        """Mean seconds of chip time of a request while all slots are in use."""
        token_s = self.chip.step_s / self.chip.slots
        each = zip(self.loads, self.prompts_s, strict=True)
        busy = (load.requests_per_s * (load.output_tokens * token_s + prompt_s) for load, prompt_s in each)
        return fsum(busy) / self.requests_per_s

    def prefill_tokens(self, job: SimulatedRequest) -> float:
        """Returns the number of tokens in full chunks whose prefill has the duration of the prompt's steps."""
        return self.prompts_s[job.arrival.prefix] * self.chip.prefill_tokens_per_s


def plan_load(loads: Sequence[ExpectedLoad], targets: Targets, roofline: Roofline) -> LoadPlan:
    """Returns the replicas that serve loads together, each within the targets.

    Args:
      loads: At least one load.
      targets: The targets; replicas are served with `--itl-target-ms` of `itl_s`.
      roofline: Roofline of a replica, with one data shard and at least one slot.

    Raises:
      ConfigError: No rate keeps the targets.
    """
    is_compiled, load = roofline.device.name in EFFICIENCIES, fsum(each.requests_per_s for each in loads)

    def replica_on(on: Roofline) -> SimulatedRate:
        return _highest(mix_on(tuple(loads), on, targets.itl_s), targets)

    replica = replica_on(roofline)
    replicas = math.ceil(load / replica.requests_per_s)
    try:
        slower = math.ceil(load / replica_on(roofline.slowed(STEP_ERRORS[is_compiled])).requests_per_s)
    except ConfigError:
        slower = None
    return LoadPlan(replica, replicas, replicas * roofline.shards.count, is_compiled, slower)


def saturated_requests_per_s(load: ExpectedLoad, roofline: Roofline, itl_target_s: float | None) -> float:
    """Returns the requests of a load that a replica ends per second while others wait for its slots.

    As many requests end as are prefilled, so that each decode step needs the prefill of a share of them. So many slots
    are in prefill that the scheduler allows that much between two decode steps, and the others decode.

    Args:
      load: Lengths of the requests; their rate is not read.
      roofline: Roofline of a replica, with one data shard and at least one slot.
      itl_target_s: Target of the scheduler for the inter-token latency; 0 for throughput, None for the default.
    """
    mix = mix_on((load,), roofline, itl_target_s)
    chip, (alone_s,) = mix.chip, mix.prompts_s
    for num_prefilling in range(1, chip.slots):
        num_decoding = chip.slots - num_prefilling
        ended, step_s = num_decoding / load.output_tokens, chip.decode(num_decoding)
        prompt_s = alone_s - mix.first_token_s * (1 - 1 / _num_together(ended, alone_s, chip))
        if chip.prefill_s(num_prefilling, num_decoding) >= ended * prompt_s:
            return ended / (step_s + ended * prompt_s)
    return 1 / (alone_s + load.output_tokens * chip.decode(1))


def mix_on(loads: tuple[ExpectedLoad, ...], roofline: Roofline, itl_target_s: float | None) -> Mix:
    """Returns loads on a device whose steps have the durations of `roost serve --simulate`.

    Args:
      itl_target_s: Target of the scheduler for the inter-token latency; 0 for throughput, None for the default.
    """
    durations = StepDurations(roofline, Simulation(roofline.device.name, roofline.device.name))
    steps = _decode_steps(durations, _window(loads, roofline.config.window))
    tokens_per_s = PREFILL_CHUNK / durations.prefill_seconds(PREFILL_CHUNK)
    chip = Chip(roofline.slots, steps[-1], tokens_per_s, 0, steps_s=steps, itl_target_s=itl_target_s)
    prompts_s = tuple(_prompt_s(durations, load.prompt_tokens) for load in loads)
    return Mix(loads, chip, prompts_s, durations.prefill_seconds(0, 1))


def simulate(mix: Mix, requests_per_s: float, seed: int) -> SimulatedRate:
    """Returns the outcome of a replica at a rate, with the arrivals of a seed."""
    clock, jobs, warm_up = Clock(), list[SimulatedRequest](), _ROUNDS * mix.chip.slots
    replica = Replica(clock, 0, mix.chip, mix.prefill_tokens)
    used, waiting = [], []

    def send(arrival: Arrival) -> None:
        if len(jobs) == warm_up:
            replica.intervals.clear()
        jobs.append(SimulatedRequest(arrival))
        waiting.append(replica.waiting)
        used.append(replica.load - replica.waiting)
        replica.submit(jobs[-1])

    for arrival in _arrivals(mix, requests_per_s, warm_up + _COUNTED, seed):
        clock.call_later(arrival.at, partial(send, arrival))
    clock.run(arrival.at)
    itl_s = _itl_p99(replica)
    clock.run(math.inf)
    ttft_s = max(_ttft_p99(jobs[warm_up:], index) for index in range(len(mix.loads)))
    mean_used, mean_waiting = (fmean(each[warm_up:]) for each in (used, waiting))
    return SimulatedRate(requests_per_s, ttft_s, itl_s, mean_used, mean_waiting)


def _highest(mix: Mix, targets: Targets) -> SimulatedRate:
    """Returns the outcome at the highest rate that keeps the targets.

    Raises:
      ConfigError: No rate keeps the targets.
    """
    best, low, high = None, 0.0, MAX_USE / mix.busy_s
    rate = high
    for _ in range(_TRIES):
        outcome = _worst(mix, targets, rate)
        if outcome.keeps(targets):
            best, low = outcome, rate
        else:
            high = rate
        rate = (low + high) / 2
    if best is None:
        raise ConfigError("ttft-p99 and itl-p99 are kept at no rate of this load; give longer ones, or a faster device")
    return best


def _worst(mix: Mix, targets: Targets, requests_per_s: float) -> SimulatedRate:
    """Returns the first outcome that misses the targets; otherwise the one with the longest time to first token."""
    worst = simulate(mix, requests_per_s, _SEEDS[0])
    for seed in _SEEDS[1:]:
        if not worst.keeps(targets):
            break
        outcome = simulate(mix, requests_per_s, seed)
        if not outcome.keeps(targets) or outcome.ttft_p99_s > worst.ttft_p99_s:
            worst = outcome
    return worst


def _arrivals(mix: Mix, requests_per_s: float, count: int, seed: int) -> Iterator[Arrival]:
    """Yields requests whose order and relative times do not depend on the rate."""
    rng, now = random.Random(seed), 0.0
    indices = rng.choices(range(len(mix.loads)), [load.requests_per_s for load in mix.loads], k=count)
    for index in indices:
        now += rng.expovariate(1.0)
        yield Arrival(now / requests_per_s, index, mix.loads[index].output_tokens)


def _ttft_p99(jobs: Sequence[SimulatedRequest], load: int) -> float:
    """Returns the 99th percentile of a load's time to first token; 0 if the load has no requests."""
    own = sorted(math.inf if job.first is None else job.ttft_s for job in jobs if job.arrival.prefix == load)
    return own[math.ceil(0.99 * len(own)) - 1] if own else 0.0


def _itl_p99(replica: Replica) -> float:
    """Returns the 99th percentile of the inter-token latency; 0 if no reply has two tokens."""
    left = 0.99 * math.fsum(replica.intervals.values())
    for interval in sorted(replica.intervals):
        left -= replica.intervals[interval]
        if left <= 0:
            return interval * INTERVAL_S
    return 0.0


def _prompt_s(durations: StepDurations, tokens: int) -> float:
    """Returns the seconds of the prefill steps of a prompt."""
    chunks, rest = divmod(tokens - 1, PREFILL_CHUNK)
    last = PREFILL_BLOCK
    while last < rest + 1:
        last *= 2
    return chunks * durations.prefill_seconds(PREFILL_CHUNK) + durations.prefill_seconds(last, 1)


def _decode_steps(durations: StepDurations, window: float) -> tuple[float, ...]:
    """Returns the seconds of a decode step by its number of requests.

    Args:
      window: Mean number of tokens in the attention window of a request.
    """
    slots = durations.roofline.slots
    sizes = (*part_rows(TPU.sizes.decode_rows, slots, durations.roofline.shards), slots)
    rows = (next(size for size in sizes if size >= count) for count in range(slots + 1))
    return tuple(durations.decode_seconds(size, round(count * window)) for count, size in enumerate(rows))


def _window(loads: tuple[ExpectedLoad, ...], size: int) -> float:
    """Returns the mean number of tokens in the attention window of a request that decodes."""
    weights = [load.requests_per_s * load.output_tokens for load in loads]
    fills = [min(size, load.prompt_tokens + load.output_tokens / 2) for load in loads]
    return fsum(weight * fill for weight, fill in zip(weights, fills, strict=True)) / fsum(weights)


def _num_together(ended: float, prompt_s: float, chip: Chip) -> float:
    """Returns how many prompts' first tokens are sampled together; see `PrefillBudget.max_held`.

    Args:
      ended: Number of prompts that end between two decode steps.
    """
    target_s = target_seconds(chip.itl_target_s, chip.step_s)
    most = min(MAX_PREFILL_ROWS, ended)
    return max(1.0, min(most, target_s / prompt_s) if target_s else most)
