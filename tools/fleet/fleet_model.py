"""Simulates a fleet of replicas by discrete events, and its load; see fleet.py.

A replica is that of `roost plan --load`; routers, clients, the autoscaler and the cloud are added here. Servers get the
same requests.
"""

import hashlib
import itertools
import math
import random
from abc import ABC, abstractmethod
from bisect import bisect, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import Final

from roost.engine import PREFILL_BLOCK
from roost.engine.planning.replicas import Arrival, Chip, Clock, Replica, SimulatedRequest

_POINTS: Final = 16
"""Points of a replica on the ring of consistent hashing."""

_SCORED: Final = 8
"""Maximum number of replicas that a picker scores because they have a prefix, and of others."""


# --- the load


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests with a shared prefix, a question of their own, and a reply of a random length.

    Attributes:
      prefixes: Number of prefixes.
      prefix_tokens: Tokens of a prefix, a multiple of `PREFILL_BLOCK`.
      question_tokens: Tokens after it.
      output_tokens: Shortest and longest reply, which are drawn uniformly.
      hot_share: Share of all requests that have the first prefix; the others follow Zipf's law.
    """

    prefixes: int
    prefix_tokens: int
    question_tokens: int
    output_tokens: tuple[int, int]
    hot_share: float = 0.0

    @property
    def mean_output(self) -> float:
        return sum(self.output_tokens) / 2

    def prefill_tokens(self, job: SimulatedRequest) -> float:
        """Returns the prompt tokens that are prefilled for a request whose prefix is cached or not."""
        return (0 if job.was_hit else self.prefix_tokens) + blocks(self.question_tokens)


def blocks(tokens: int) -> int:
    """Returns a number of tokens rounded up to whole blocks."""
    return -(-tokens // PREFILL_BLOCK) * PREFILL_BLOCK


def capacity(chip: Chip, load: Workload, hit_rate: float) -> float:
    """Returns the requests per second at which a chip has no time left.

    Each needs its share of decode steps and its own prefill, and one slot for as long as both take.
    """
    prompt = blocks(load.question_tokens) + (1 - hit_rate) * load.prefix_tokens
    return 1 / (load.mean_output * chip.step_s / chip.slots + prompt / chip.prefill_tokens_per_s)


def arrivals(load: Workload, rate: Callable[[float], float], most: float, until: float, seed: int) -> Iterator[Arrival]:
    """Yields requests of a Poisson process whose rate changes.

    Args:
      rate: Requests per second at a time.
      most: Maximum of `rate`.
      until: Time of the last request, in seconds.
      seed: Seed of all that is drawn.
    """
    rng, now = random.Random(seed), 0.0
    weights = [1 / number for number in range(1, load.prefixes + 1)]
    weights[0] += load.hot_share / (1 - load.hot_share) * math.fsum(weights)
    popularity = list(accumulate(weights))
    while (now := now + rng.expovariate(most)) < until:
        if rng.random() * most < rate(now):
            (prefix,) = rng.choices(range(load.prefixes), cum_weights=popularity)
            yield Arrival(now, prefix, rng.randint(*load.output_tokens))


def steady(load: Workload, rate: float, until: float, seed: int) -> Sequence[Arrival]:
    """Returns requests of a Poisson process."""
    return list(arrivals(load, lambda _: rate, rate, until, seed))


# --- routing


class Router(ABC):
    """Picks replicas."""

    def __init__(self) -> None:
        self._random = random.Random(0)
        self._replicas: list[Replica] = []

    def add(self, replica: Replica) -> None:
        """Takes a replica that has become ready."""
        self._replicas.append(replica)

    def remove(self, replica: Replica) -> None:
        """Leaves a replica out from now on."""
        self._replicas.remove(replica)

    @abstractmethod
    def pick(self, job: SimulatedRequest) -> Replica:
        """Returns the replica for a request; there is at least one."""

    def any(self) -> Replica:
        """Returns a random replica."""
        return self._random.choice(self._replicas)


class InTurn(Router):
    """Picks one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._turns = itertools.count()

    def pick(self, job: SimulatedRequest) -> Replica:
        return self._replicas[next(self._turns) % len(self._replicas)]


class LeastOfTwo(Router):
    """Picks the one with fewer requests of two."""

    def pick(self, job: SimulatedRequest) -> Replica:
        return min(self.any(), self.any(), key=lambda replica: replica.load)


class PrefixHash(Router):
    """Picks by consistent hashing of the prefix, as nginx and HAProxy do with a header.

    Args:
      factor: Maximum load of a replica, in the mean load; the next one on the ring is picked then. Infinity never does.
    """

    def __init__(self, factor: float = math.inf) -> None:
        super().__init__()
        self._factor = factor
        self._ring: list[tuple[int, Replica]] = []

    def add(self, replica: Replica) -> None:
        for point in range(_POINTS):
            insort(self._ring, (_hash(f"{replica.number}-{point}"), replica), key=itemgetter(0))

    def remove(self, replica: Replica) -> None:
        self._ring = [each for each in self._ring if each[1] is not replica]

    def pick(self, job: SimulatedRequest) -> Replica:
        place = bisect(self._ring, _hash(f"prefix {job.arrival.prefix}"), key=itemgetter(0))
        most = self._factor * self._mean_load() if self._factor < math.inf else math.inf
        for step in range(len(self._ring)):
            replica = self._ring[(place + step) % len(self._ring)][1]
            if replica.load <= most:
                return replica
        return replica

    def _mean_load(self) -> float:
        """Returns the mean load with the new request, of a sample where there are many replicas."""
        sample = self._ring[:: max(1, len(self._ring) // 128)]
        return 1 + sum(replica.load for _, replica in sample) / len(sample)


class Picker(Router):
    """Picks by the scores of the endpoint picker: queue 2, slots 2, prefix 3; see deploy/chart/files/picker.yaml.

    With many replicas, it scores those that got the prefix last, and some others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._holders: dict[int, deque[Replica]] = {}

    def pick(self, job: SimulatedRequest) -> Replica:
        holders = self._holders.setdefault(job.arrival.prefix, deque(maxlen=_SCORED))
        few = len(self._replicas) <= _SCORED
        others = self._replicas if few else [self.any() for _ in range(_SCORED)]
        candidates = {each.number: each for each in (*holders, *others) if each.is_open}
        queues = [each.waiting for each in candidates.values()]
        longest, shortest = max(queues), min(queues)

        def score(replica: Replica) -> float:
            queue = 1.0 if longest == shortest else (longest - replica.waiting) / (longest - shortest)
            return 2 * queue + 2 * (1 - replica.used) + 3 * replica.has(job.arrival.prefix)

        best = max(candidates.values(), key=score)
        if best not in holders:
            holders.append(best)
        return best


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


# --- the fleet


@dataclass(slots=True)
class Policy:
    """Behaviour of clients, autoscaler and cloud.

    Attributes:
      retries: Times that a client sends a request again that was refused or cut, after half a second to a second.
      start_s: Seconds from asking for a replica until it is ready.
      target: Share of slots in use that the autoscaler aims at; 0 keeps the number of replicas.
      look_s: Seconds between two looks of the autoscaler.
      reclaims_per_hour: Reclaims of each replica per hour, which are replaced after `start_s`.
      notice_s: Seconds of notice before a reclaim, in which the replica takes no more requests.
    """

    retries: int = 3
    start_s: float = 60.0
    target: float = 0.0
    look_s: float = 15.0
    reclaims_per_hour: float = 0.0
    notice_s: float = 30.0


@dataclass(slots=True)
class Outcome:
    """Results of a simulated load.

    Attributes:
      jobs: All requests whose arrival was counted.
      replicas: Pairs of time and number of ready replicas.
      num_cut: Times that a request was cut by the end of its replica.
    """

    jobs: list[SimulatedRequest] = field(default_factory=list)
    replicas: list[tuple[float, int]] = field(default_factory=list)
    num_cut: int = 0


class Fleet:
    """Replicas behind a router, under a load.

    Args:
      chip: What each replica runs on.
      workload: Lengths of prompts.
      router: Picks replicas.
      policy: Behaviour of clients, autoscaler and cloud.
      seed: Seed of retries and reclaims.
    """

    def __init__(
        self, chip: Chip, workload: Workload, router: Router, policy: Policy | None = None, seed: int = 0
    ) -> None:
        self._clock = Clock()
        self._chip, self._workload, self._router = chip, workload, router
        self._policy = policy or Policy()
        self._random = random.Random(seed)
        self._replicas: dict[int, Replica] = {}
        self._num_made = 0
        self._wanted = 0
        self._outcome = Outcome()

    def run(self, replicas: int, load: Iterable[Arrival], until: float, *, is_warm: bool = False) -> Outcome:
        """Runs the load on a number of replicas that are ready at the start.

        Args:
          until: Seconds after which the simulation ends.
          is_warm: Whether each prefix is in the cache of a replica that the router picks for it.
        """
        self._wanted = replicas
        for _ in range(replicas):
            self._ready(self._ask())
        for prefix in range(self._workload.prefixes if is_warm else 0):
            self._router.pick(SimulatedRequest(Arrival(0.0, prefix, 1))).remember(prefix)
        self._send(iter(load))
        if self._policy.target:
            self._clock.call_later(self._policy.look_s, self._scale)
        self._clock.run(until)
        return self._outcome

    def _send(self, load: Iterator[Arrival]) -> None:
        """Sends the next request at its time, and then those after it."""
        if (arrival := next(load, None)) is None:
            return

        def send() -> None:
            job = SimulatedRequest(arrival)
            self._outcome.jobs.append(job)
            self._try(job)
            self._send(load)

        self._clock.call_later(max(0.0, arrival.at - self._clock.now), send)

    def _try(self, job: SimulatedRequest) -> None:
        if not self._replicas:
            self._retry(job, "no replica")
        elif not self._router.pick(job).submit(job):
            self._retry(job, "refused")

    def _retry(self, job: SimulatedRequest, reason: str) -> None:
        job.first = None
        job.tries += reason != "cut"
        if job.tries > self._policy.retries:
            job.failure, job.end = reason, self._clock.now
            return
        self._clock.call_later(0.5 + 0.5 * self._random.random(), lambda: self._try(job))

    # --- replicas that come and go

    def _ask(self) -> Replica:
        self._num_made += 1
        return Replica(self._clock, self._num_made, self._chip, self._workload.prefill_tokens)

    def _ready(self, replica: Replica) -> None:
        if len(self._replicas) >= self._wanted:
            return
        self._replicas[replica.number] = replica
        self._router.add(replica)
        self._note()
        if self._policy.reclaims_per_hour:
            life = self._random.expovariate(self._policy.reclaims_per_hour / 3600)
            self._clock.call_later(life, lambda: self._reclaim(replica))

    def _start_one(self) -> None:
        replica = self._ask()
        self._clock.call_later(self._policy.start_s, lambda: self._ready(replica))

    def _reclaim(self, replica: Replica) -> None:
        """Announces a reclaim: the replica leaves the router, and a new one is asked for."""
        if replica.number not in self._replicas:
            return
        self._leave(replica)
        self._start_one()
        self._clock.call_later(self._policy.notice_s, lambda: self._end(replica))

    def _leave(self, replica: Replica) -> None:
        del self._replicas[replica.number]
        self._router.remove(replica)
        replica.is_open = False
        self._note()

    def _end(self, replica: Replica) -> None:
        for job in replica.kill():
            self._outcome.num_cut += 1
            self._retry(job, "cut")

    def _scale(self) -> None:
        """Adds replicas as Kubernetes' autoscaler does: the number times the ratio of use and target, rounded up."""
        demand = sum(each.load for each in self._replicas.values()) / self._chip.slots
        wanted = max(self._wanted, math.ceil(demand / self._policy.target - 0.1))
        for _ in range(wanted - self._wanted):
            self._start_one()
        self._wanted = wanted
        self._clock.call_later(self._policy.look_s, self._scale)

    def _note(self) -> None:
        self._outcome.replicas.append((self._clock.now, len(self._replicas)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns a percentile of at least one value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]
