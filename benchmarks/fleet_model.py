"""Simulates a fleet of replicas by discrete events, up to 10,000 of them; see fleet.py.

A replica is a fluid: while prompts wait, decode steps and prefill steps take turns as the scheduler lets them, so that
tokens and prompts proceed at constant rates until a prompt or a reply ends. This takes some three events per request,
however long its reply. `fleet.py` compares it with real servers.
"""

import hashlib
import math
import random
from bisect import bisect, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final, Protocol

import simpy
from fleet_load import BLOCK, Arrival, Chip, Workload, blocks

TARGET_STEPS: Final = 0.85 * 2.9
"""Time between two tokens that the scheduler plans for while prompts wait, in decode steps; see PrefillBudget."""

PATIENCE: Final = 8
LAG_CYCLES: Final = 0.5
"""Steps between the arrival at a busy replica and the first prefill step: the rest of the one that runs, and the
one that is dispatched already, less the decode step that the fluid counts with a prompt's last chunk."""

OVERHEAD_S: Final = 0.004
"""Seconds of a request outside of the device: HTTP, tokenizer, queues between threads."""

_EPSILON: Final = 1e-9
_POINTS: Final = 16
"""Points of a replica on the ring of consistent hashing."""


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the fleet.

    Attributes:
      arrival: The request.
      first: Time of its first token, in seconds; None before.
      end: Time of its last token, or of its failure; None before.
      prefill_left: Prompt tokens that are not prefilled yet.
      was_hit: Whether its prefix was cached.
      tries: Number of times that it was sent to a replica.
      failure: Why it failed for good; "" if it did not.
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
      load: Number of its requests, waiting ones included.
      is_open: Whether it takes requests.

    Args:
      env: The simulation.
      chip: What it runs on.
      workload: Lengths of prompts.
      lost: Called with each job that is cut when the replica dies.
    """

    def __init__(self, env: simpy.Environment, number: int, chip: Chip, workload: Workload) -> None:
        self.number = number
        self.is_open = True
        self.load = 0
        self._env, self._chip, self._workload = env, chip, workload
        self._waiting: deque[Job] = deque()
        self._starting: set[Job] = set()
        self._prefilling: list[Job] = []
        self._decoding: list[tuple[float, int, Job]] = []
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
        """Takes a prefix into the cache, and evicts the one that was used the longest time ago if it is full."""
        self._cache[prefix] = None
        self._cache.move_to_end(prefix)
        if len(self._cache) > self._chip.cached_prefixes:
            self._cache.popitem(last=False)

    def submit(self, job: Job) -> bool:
        """Takes a request; returns False if the queue is full."""
        if self.load >= self._chip.slots + self._chip.max_queue:
            return False
        job.tries += 1
        self.load += 1
        if self.load > self._chip.slots:
            self._waiting.append(job)
        else:
            self._start(job, LAG_CYCLES if self._decoding or self._prefilling else 0.0)
        return True

    def kill(self) -> list[Job]:
        """Ends the replica at once; returns its requests, none of which will end here."""
        self.is_open = False
        self._version += 1
        cut = [*self._waiting, *self._starting, *self._prefilling, *(job for _, _, job in self._decoding)]
        self._waiting.clear()
        self._starting.clear()
        self._prefilling, self._decoding, self.load = [], [], 0
        return cut

    def _start(self, job: Job, lag: float) -> None:
        """Gives a request a slot; its prefill begins after some steps."""
        prefix = job.arrival.prefix
        job.was_hit = prefix in self._cache
        self.remember(prefix)
        new = 0 if job.was_hit else self._workload.prefix_tokens
        job.prefill_left = new + blocks(self._workload.question_tokens)
        self._starting.add(job)
        self._later(lag * self._cycle() + OVERHEAD_S, lambda: self._enter(job))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._env.timeout(seconds).callbacks.append(lambda _: call())

    def _enter(self, job: Job) -> None:
        if job not in self._starting:  # the replica was killed
            return
        self._starting.remove(job)
        self._proceed()
        self._prefilling.append(job)
        self._plan()

    def _cycle(self) -> float:
        """Returns the seconds from one decode step to the next."""
        return 1 / self._decode_rate if self._decode_rate else self._chip.step_s

    def _proceed(self) -> None:
        """Books the progress since the last event."""
        elapsed, self._at = self._env.now - self._at, self._env.now
        self._steps += elapsed * self._decode_rate
        if self._prefilling:
            self._prefilling[0].prefill_left -= elapsed * self._prefill_rate

    def _plan(self) -> None:
        """Sets the rates from now on, and the time of the next event."""
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
            self._later(max(next_s, 0.0), lambda: self._on_event(version))

    def _on_event(self, version: int) -> None:
        if version != self._version:
            return
        self._proceed()
        now = self._env.now
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
        if not num_prefilling:
            return 0.0, 1 / chip.step_s if num_decoding else 0.0
        if not num_decoding:
            return chip.prefill_tokens_per_s, 0.0
        patience = max(1.0, PATIENCE * (num_prefilling - 1) / num_decoding)
        room = (TARGET_STEPS * patience - 1) * chip.step_s * chip.prefill_tokens_per_s
        left = sum(job.prefill_left for job in self._prefilling)
        tokens = min(max(room // BLOCK * BLOCK, BLOCK), max(left, BLOCK))
        cycle = chip.step_s + tokens / chip.prefill_tokens_per_s
        return tokens / cycle, 1 / cycle


# --- routing


class Router(Protocol):
    """Picks replicas."""

    def add(self, replica: Replica) -> None:
        """Takes a replica that has become ready."""

    def remove(self, replica: Replica) -> None:
        """Leaves a replica out from now on."""

    def pick(self, job: Job) -> Replica:
        """Returns the replica for a request; there is at least one."""


class RandomRouter:
    """Picks any replica."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._replicas: list[Replica] = []
        self._places: dict[int, int] = {}

    def add(self, replica: Replica) -> None:
        self._places[replica.number] = len(self._replicas)
        self._replicas.append(replica)

    def remove(self, replica: Replica) -> None:
        place, last = self._places.pop(replica.number), self._replicas.pop()
        if last is not replica:
            self._replicas[place] = last
            self._places[last.number] = place

    def pick(self, job: Job) -> Replica:
        return self.any()

    def any(self) -> Replica:
        return self._replicas[int(self._random.random() * len(self._replicas))]


class InTurn:
    """Picks one after the other."""

    def __init__(self) -> None:
        self._replicas: list[Replica] = []
        self._turn = 0

    def add(self, replica: Replica) -> None:
        self._replicas.append(replica)

    def remove(self, replica: Replica) -> None:
        self._replicas.remove(replica)

    def pick(self, job: Job) -> Replica:
        self._turn += 1
        return self._replicas[(self._turn - 1) % len(self._replicas)]


class LeastOfTwo(RandomRouter):
    """Picks the one with fewer requests of two."""

    def pick(self, job: Job) -> Replica:
        return min(self.any(), self.any(), key=lambda replica: replica.load)


class PrefixHash:
    """Picks by consistent hashing of the prefix, as nginx and HAProxy do with a header.

    Args:
      factor: Maximum load of a replica, in the mean load; the next one on the ring is picked then. Infinity never does.
    """

    def __init__(self, factor: float = math.inf) -> None:
        self._factor = factor
        self._ring: list[tuple[int, int]] = []
        self._replicas: dict[int, Replica] = {}
        self._load = 0

    def add(self, replica: Replica) -> None:
        self._replicas[replica.number] = replica
        for point in range(_POINTS):
            insort(self._ring, (_hash(f"{replica.number}-{point}"), replica.number))

    def remove(self, replica: Replica) -> None:
        del self._replicas[replica.number]
        for point in range(_POINTS):
            del self._ring[bisect(self._ring, (_hash(f"{replica.number}-{point}"), -1))]

    def pick(self, job: Job) -> Replica:
        place = bisect(self._ring, (_hash(f"prefix {job.arrival.prefix}"), -1))
        most = self._factor * self._mean_load() if self._factor < math.inf else math.inf
        for step in range(len(self._ring)):
            replica = self._replicas[self._ring[(place + step) % len(self._ring)][1]]
            if replica.load <= most:
                return replica
        return replica

    def _mean_load(self) -> float:
        """Returns the mean load with the new request, of a sample where there are many replicas."""
        sample = self._ring[:: max(1, len(self._ring) // 128)]
        return 1 + sum(self._replicas[number].load for _, number in sample) / len(sample)


class Picker(RandomRouter):
    """Picks by the scores of the endpoint picker: queue 2, slots 2, prefix 3; see deploy/chart/files/picker.yaml.

    With many replicas, it scores those that got the prefix last, and some others.
    """

    def __init__(self, seed: int = 0, others: int = 8, holders: int = 8) -> None:
        super().__init__(seed)
        self._others, self._num_holders = others, holders
        self._holders: dict[int, deque[Replica]] = {}

    def pick(self, job: Job) -> Replica:
        holders = self._holders.setdefault(job.arrival.prefix, deque(maxlen=self._num_holders))
        few = len(self._replicas) <= self._others
        others = self._replicas if few else [self.any() for _ in range(self._others)]
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
    """What clients, the autoscaler and the cloud do.

    Attributes:
      retries: Times that a client sends a request again that was refused or cut.
      retry_s: Seconds that it waits before, half of it at random.
      start_s: Seconds from asking for a replica until it is ready.
      target: Share of slots in use that the autoscaler aims at; 0 keeps the number of replicas.
      look_s: Seconds between two looks of the autoscaler.
      reclaims_per_hour: Reclaims of each replica per hour, which are replaced after `start_s`.
      notice_s: Seconds of notice before a reclaim, in which the replica takes no more requests.
    """

    retries: int = 3
    retry_s: float = 1.0
    start_s: float = 60.0
    target: float = 0.0
    look_s: float = 15.0
    reclaims_per_hour: float = 0.0
    notice_s: float = 30.0


@dataclass(slots=True)
class Outcome:
    """What came of a load.

    Attributes:
      jobs: All requests whose arrival was counted.
      replicas: Pairs of time and number of ready replicas.
      num_refused, num_cut: Times that a request was refused, or cut by the end of its replica.
      replica_seconds: Seconds of all replicas together, from asking for one to its end.
    """

    jobs: list[Job] = field(default_factory=list)
    replicas: list[tuple[float, int]] = field(default_factory=list)
    num_refused: int = 0
    num_cut: int = 0
    replica_seconds: float = 0.0


class Fleet:
    """Replicas behind a router, under a load.

    Args:
      chip: What each replica runs on.
      workload: Lengths of prompts.
      router: Picks replicas.
      policy: What clients, the autoscaler and the cloud do.
      seed: Seed of retries and reclaims.
    """

    def __init__(
        self, chip: Chip, workload: Workload, router: Router, policy: Policy | None = None, seed: int = 0
    ) -> None:
        self._env = simpy.Environment()
        self._chip, self._workload, self._router = chip, workload, router
        self._policy = policy or Policy()
        self._random = random.Random(seed)
        self._replicas: dict[int, Replica] = {}
        self._num_made = 0
        self._wanted = 0
        self._asked: dict[int, float] = {}
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
            self._router.pick(Job(Arrival(0.0, prefix, 1))).remember(prefix)
        self._env.process(self._send(load))
        if self._policy.target:
            self._env.process(self._scale())
        self._env.run(until)
        now = self._env.now
        self._outcome.replica_seconds += sum(now - asked for asked in self._asked.values())
        return self._outcome

    def _send(self, load: Iterable[Arrival]) -> Generator[Any]:
        for arrival in load:
            if (wait := arrival.at - self._env.now) > 0:
                yield self._env.timeout(wait)
            job = Job(arrival)
            self._outcome.jobs.append(job)
            self._try(job)

    def _try(self, job: Job) -> None:
        if not self._replicas:
            self._retry(job, "no replica")
        elif not self._router.pick(job).submit(job):
            self._outcome.num_refused += 1
            self._retry(job, "refused")

    def _retry(self, job: Job, reason: str) -> None:
        job.first = None
        job.tries += reason != "cut"
        if job.tries > self._policy.retries:
            job.failure, job.end = reason, self._env.now
            return
        wait = self._policy.retry_s * (0.5 + 0.5 * self._random.random())
        self._env.timeout(wait).callbacks.append(lambda _: self._try(job))

    # --- replicas that come and go

    def _ask(self) -> Replica:
        self._num_made += 1
        self._asked[self._num_made] = self._env.now
        return Replica(self._env, self._num_made, self._chip, self._workload)

    def _ready(self, replica: Replica) -> None:
        if len(self._replicas) >= self._wanted:
            self._outcome.replica_seconds += self._env.now - self._asked.pop(replica.number)
            return
        self._replicas[replica.number] = replica
        self._router.add(replica)
        self._note()
        if self._policy.reclaims_per_hour:
            life = self._random.expovariate(self._policy.reclaims_per_hour / 3600)
            self._env.timeout(life).callbacks.append(lambda _: self._reclaim(replica))

    def _start_one(self) -> None:
        replica = self._ask()
        self._env.timeout(self._policy.start_s).callbacks.append(lambda _: self._ready(replica))

    def _reclaim(self, replica: Replica) -> None:
        """Announces a reclaim: the replica leaves the router, and a new one is asked for."""
        if replica.number not in self._replicas:
            return
        self._leave(replica)
        self._start_one()
        self._env.timeout(self._policy.notice_s).callbacks.append(lambda _: self._end(replica))

    def _leave(self, replica: Replica) -> None:
        del self._replicas[replica.number]
        self._router.remove(replica)
        replica.is_open = False
        self._note()

    def _end(self, replica: Replica) -> None:
        self._outcome.replica_seconds += self._env.now - self._asked.pop(replica.number)
        for job in replica.kill():
            self._outcome.num_cut += 1
            self._retry(job, "cut")

    def _scale(self) -> Generator[Any]:
        """Adds replicas as Kubernetes' autoscaler does: the number times the ratio of use and target, rounded up."""
        while True:
            yield self._env.timeout(self._policy.look_s)
            demand = sum(each.load for each in self._replicas.values()) / self._chip.slots
            wanted = max(self._wanted, math.ceil(demand / self._policy.target - 0.1))
            for _ in range(wanted - self._wanted):
                self._start_one()
            self._wanted = wanted

    def _note(self) -> None:
        self._outcome.replicas.append((self._env.now, len(self._replicas)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns a percentile of at least one value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]
