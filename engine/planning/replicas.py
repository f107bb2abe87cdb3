"""Finds the number of replicas that serve an expected load within targets.

Behind a Service, every one of N replicas gets a random share of a Poisson process, which is a Poisson process with an
Nth of the rate. One simulated replica is therefore sufficient. Routers that consider queues do better.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Final

from ..capacity.roofline import Roofline
from ..simulation.durations import EFFICIENCIES
from ..types.errors import ConfigError
from .clock import Clock
from .load import ExpectedLoad, Targets
from .mix import Mix, mix_on
from .replica import INTERVAL_S, OVERHEAD_S, Arrival, Replica, SimulatedRequest

MODEL_ERROR: Final = 0.03
"""Maximum relative error of throughput and request times compared with real servers on a simulated device, from
benchmarks/fleet.md. It does not include the error of the durations of steps."""

MAX_USE: Final = 0.95
"""Maximum share of a replica's time; with less idle time, queues take minutes to drain."""

_TRIES: Final = 9
_ROUNDS: Final = 2
"""Number of first requests that are not counted, in slots."""

_COUNTED: Final = 2000
"""Number of requests that are counted after them."""

_SEEDS: Final = (1, 2, 3)
"""Seeds of arrivals, all of which must keep the targets: if steps of few requests are short, a burst can cause long
steps, and these an accumulation of requests that persists."""


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
      chips: Number of their chips.
      is_compiled: Whether durations of steps come from programs compiled for the device, rather than from an estimate.
    """

    replica: SimulatedRate
    replicas: int
    chips: int
    is_compiled: bool


def plan_load(loads: Sequence[ExpectedLoad], targets: Targets, roofline: Roofline, device: str) -> LoadPlan:
    """Returns the replicas that serve loads together, each within the targets.

    Args:
      loads: At least one load.
      targets: The targets; replicas are served with `--itl-target-ms` of `itl_s`.
      roofline: Roofline of a replica, with one data shard and at least one slot.
      device: Name of its device.

    Raises:
      ConfigError: A target is shorter than a lone request takes, or no rate keeps it.
    """
    mix = mix_on(tuple(loads), roofline, device, targets.itl_s)
    _check_lone_requests(mix, targets)
    replica = _highest(mix, targets)
    replicas = math.ceil(mix.requests_per_s / replica.requests_per_s)
    return LoadPlan(replica, replicas, replicas * roofline.shards.count, device in EFFICIENCIES)


def simulate(mix: Mix, requests_per_s: float, seed: int) -> SimulatedRate:
    """Returns the outcome of a replica at a rate, with the arrivals of a seed."""
    clock, jobs, warm_up = Clock(), list[SimulatedRequest](), _ROUNDS * mix.chip.slots
    replica = Replica(clock, 0, mix.chip, mix)
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


def _check_lone_requests(mix: Mix, targets: Targets) -> None:
    """Checks that a lone request meets the targets.

    Raises:
      ConfigError: A target is shorter than a lone request takes.
    """
    ttft_s = OVERHEAD_S + max(mix.prompts_s)
    for name, least_s, target_s in (
        ("ttft-p99", ttft_s, targets.ttft_s),
        ("itl-p99", mix.chip.decode(1), targets.itl_s),
    ):
        if least_s > target_s:
            raise ConfigError(f"{name} must be at least the {1e3 * least_s:.3g}ms that a lone request takes")


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
