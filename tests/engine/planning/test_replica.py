"""The fluid of a plan, beside the scheduler itself on the simulated device, on a clock of the test's own."""

import math
import random
from collections import deque
from dataclasses import replace
from functools import partial
from itertools import accumulate
from statistics import fmean
from typing import NamedTuple

import pytest
from roost.engine import (
    EngineConfig,
    EngineCore,
    Request,
    SamplingParams,
    compute_roofline,
    engine_core,
    find_device,
    simulation,
)
from roost.engine.builder import load_engine
from roost.engine.planning.replicas import (
    OVERHEAD_S,
    Arrival,
    Clock,
    ExpectedLoad,
    Mix,
    Replica,
    SimulatedRequest,
    mix_on,
)
from roost.engine.types.config import Simulation
from roost.server.model_hub import find_model

SLOTS = 8
COUNT = 60


class ManualTime:
    """Stands for the module `time`; only sleeping takes time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> ManualTime:
    time = ManualTime()
    monkeypatch.setattr(engine_core, "time", time)
    monkeypatch.setattr(simulation, "time", time)
    return time


class Times(NamedTuple):
    """Means over all requests, in seconds."""

    first_token: float
    reply: float


def of_fluid(mix: Mix, arrivals: list[Arrival]) -> Times:
    clock, jobs = Clock(), [SimulatedRequest(arrival) for arrival in arrivals]
    replica = Replica(clock, 0, replace(mix.chip, max_queue=COUNT), mix.prefill_tokens)

    def submit(job: SimulatedRequest) -> None:
        assert replica.submit(job)

    for job in jobs:
        clock.call_later(job.arrival.at, partial(submit, job))
    clock.run(math.inf)
    assert all(job.end is not None for job in jobs)
    return Times(fmean(job.ttft_s for job in jobs), fmean((job.end or 0.0) - job.arrival.at for job in jobs))


def of_scheduler(core: EngineCore, time: ManualTime, load: ExpectedLoad, arrivals: list[Arrival]) -> Times:
    waiting = deque(enumerate(arrivals))
    first, last = dict[str, float](), dict[str, float]()
    while waiting or not core.is_idle:
        while waiting and waiting[0][1].at + OVERHEAD_S <= time.now:
            index, arrival = waiting.popleft()
            params = SamplingParams(max_tokens=arrival.output_tokens)
            core.add(Request(str(index), (1,) * load.prompt_tokens, params))
        if core.is_idle:
            time.now = waiting[0][1].at + OVERHEAD_S
            continue
        for request_id, *_ in core.step():
            last[request_id] = time.now - arrivals[int(request_id)].at
            first.setdefault(request_id, last[request_id])
    assert len(last) == len(arrivals)
    return Times(fmean(first.values()), fmean(last.values()))


@pytest.mark.parametrize(
    ("load", "share"),
    [(ExpectedLoad(512, 128, 1.0), 0.7), (ExpectedLoad(2048, 32, 1.0), 0.7), (ExpectedLoad(100, 200, 1.0), 1.0)],
    ids=["short", "long prompts", "saturated"],
)
def test_the_fluid_is_the_scheduler_on_the_simulated_device(load: ExpectedLoad, share: float, time: ManualTime) -> None:
    source = find_model("random:2b")
    roofline = replace(compute_roofline(source.config, find_device("v5e"), 2), slots=SLOTS)
    mix = mix_on((load,), roofline, None)
    rng = random.Random(1)
    times = accumulate(rng.expovariate(share / mix.busy_s) for _ in range(COUNT))
    arrivals = [Arrival(at, 0, load.output_tokens) for at in times]
    config = EngineConfig(SLOTS, max_queue=COUNT, state_cache_gib=0.0, simulate=Simulation.parse("v5e"))
    fluid, scheduler = of_fluid(mix, arrivals), of_scheduler(load_engine(source, config), time, load, arrivals)
    assert fluid.reply == pytest.approx(scheduler.reply, rel=0.02)
    assert fluid.first_token == pytest.approx(scheduler.first_token, rel=0.04)


def test_calls_are_made_in_the_order_of_their_times_and_then_of_their_giving() -> None:
    clock, calls = Clock(), []
    for name, seconds in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        clock.call_later(seconds, lambda name=name: calls.append((name, clock.now)))
    clock.run(math.inf)
    assert calls == [("a", 1.0), ("b", 1.0), ("c", 2.0)]
    assert clock.now == 2.0


def test_a_run_ends_before_the_calls_of_its_end() -> None:
    clock, calls = Clock(), []
    clock.call_later(1.0, lambda: clock.call_later(1.0, lambda: calls.append(clock.now)))
    clock.run(2.0)
    assert (calls, clock.now) == ([], 2.0)
    clock.run(math.inf)
    assert calls == [2.0]
