"""The search for the rate of a replica, and its rate when saturated, against runs of the model; loads as written."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from roost.engine import ConfigError, Roofline, compute_roofline, find_device
from roost.engine.capacity.roofline import DEVICES
from roost.engine.model.config import PRESETS
from roost.engine.planning import replicas
from roost.engine.planning.replicas import (
    MAX_USE,
    OVERHEAD_S,
    Arrival,
    Clock,
    ExpectedLoad,
    LoadPlan,
    Replica,
    SimulatedRequest,
    Targets,
    mix_on,
    plan_load,
    saturated_requests_per_s,
    simulate,
)
from roost.server.model_hub import find_model


@pytest.fixture(autouse=True, scope="module")
def short_runs() -> Iterator[None]:
    """Counts 200 requests of each run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "_COUNTED", 200)
        yield


SHORT = ExpectedLoad.parse("512+128@40/s")
TARGETS = Targets(1.0, 0.06)


@cache
def roofline(slots: int = 8, device: str = "v5e") -> Roofline:
    """Returns that of 2B with few slots, so that a simulation is short."""
    return replace(compute_roofline(find_model("random:2b").config, find_device(device), 2), slots=slots)


@cache
def planned(*loads: ExpectedLoad, targets: Targets = TARGETS, slots: int = 8, device: str = "v5e") -> LoadPlan:
    return plan_load(loads, targets, roofline(slots, device))


def test_the_rate_of_a_replica_keeps_the_targets_and_one_percent_more_does_not() -> None:
    rate = planned(SHORT).replica.requests_per_s
    mix = mix_on((SHORT,), roofline(), TARGETS.itl_s)
    assert all(simulate(mix, rate, seed).keeps(TARGETS) for seed in (1, 2, 3))
    assert rate < MAX_USE / mix.busy_s
    assert not all(simulate(mix, 1.01 * rate, seed).keeps(TARGETS) for seed in (1, 2, 3))


def test_lax_targets_leave_a_replica_some_idle_time() -> None:
    mix = mix_on((SHORT,), roofline(), 10.0)
    assert planned(SHORT, targets=Targets(1000.0, 10.0)).replica.requests_per_s == pytest.approx(MAX_USE / mix.busy_s)


def test_more_load_never_needs_fewer_replicas() -> None:
    rates = (0.1, 40.0, 400.0)
    plans = [planned(replace(SHORT, requests_per_s=rate)) for rate in rates]
    assert [plan.replicas for plan in plans] == sorted(plan.replicas for plan in plans)
    assert plans[0].replicas == 1
    assert all(
        plan.replicas == math.ceil(rate / plan.replica.requests_per_s) for plan, rate in zip(plans, rates, strict=True)
    )


@pytest.mark.parametrize("longer", [ExpectedLoad(1024, 128, 40.0), ExpectedLoad(512, 256, 40.0)])
def test_longer_requests_need_more(longer: ExpectedLoad) -> None:
    assert planned(longer).replica.requests_per_s < planned(SHORT).replica.requests_per_s


def test_shorter_targets_need_more() -> None:
    rates = [
        planned(SHORT, targets=Targets(*each)).replica.requests_per_s
        for each in ((0.2, 0.06), (1.0, 0.02), (1.0, 0.06))
    ]
    assert max(rates) == rates[2]
    assert rates[0] < rates[2]


def test_loads_are_one_mix_and_a_second_one_needs_no_fewer() -> None:
    halves = [replace(SHORT, requests_per_s=20.0)] * 2
    assert planned(*halves).replicas == pytest.approx(planned(SHORT).replicas, abs=1)
    assert planned(SHORT, ExpectedLoad.parse("2048+16@5/s")).replicas > planned(SHORT).replicas


def test_the_targets_hold_for_each_load_of_a_mix() -> None:
    """One of 200 requests is long, which the 99th percentile of all would not show."""
    rare = ExpectedLoad.parse("16384+16@0.2/s")
    mix = mix_on((SHORT, rare), roofline(), TARGETS.itl_s)
    assert max(simulate(mix, 1.0, seed).ttft_p99_s for seed in range(4)) > mix.prompts_s[1] > 20 * mix.prompts_s[0]


def test_a_plan_is_the_same_each_time() -> None:
    assert plan_load([SHORT], TARGETS, roofline()) == planned(SHORT)


def test_chips_are_those_of_all_replicas() -> None:
    assert planned(SHORT).chips == planned(SHORT).replicas
    assert planned(SHORT).is_compiled
    assert not planned(SHORT, device="h100").is_compiled


def test_slower_steps_take_more_replicas_or_miss_the_targets() -> None:
    """Times of requests grow with those of steps; what a request takes outside of the device does not."""
    found = planned(replace(SHORT, requests_per_s=100.0))
    slower = plan_load([replace(SHORT, requests_per_s=100.0)], TARGETS, roofline().slowed(1.3))
    assert found.step_error == 1.3
    assert found.replicas_if_slower == slower.replicas > found.replicas
    lone_s = mix_on((SHORT,), roofline(), TARGETS.itl_s).chip.decode(1)
    assert planned(SHORT, targets=replace(TARGETS, itl_s=1.2 * lone_s)).replicas_if_slower is None


def test_a_lone_request_takes_its_chunks_and_its_steps() -> None:
    mix = mix_on((ExpectedLoad.parse("1000+2@1/s"),), roofline(), TARGETS.itl_s)
    lone = simulate(mix, 0.01, 1)
    assert lone.ttft_p99_s == pytest.approx(OVERHEAD_S + mix.prompts_s[0])
    assert lone.itl_p99_s == pytest.approx(mix.chip.decode(1), abs=1e-4)


@pytest.mark.parametrize("targets", [Targets(0.005, 0.06), Targets(1.0, 0.005)])
def test_targets_that_a_lone_request_misses_are_refused(targets: Targets) -> None:
    with pytest.raises(ConfigError, match=r"^ttft-p99 and itl-p99 are kept at no rate of this load"):
        planned(SHORT, targets=targets)


@pytest.mark.parametrize("text", ["512+128@40/s", "1+1@0.5/s"])
def test_a_load_is_shown_as_it_is_written(text: str) -> None:
    assert str(ExpectedLoad.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "512",
        "512+128",
        "512+128@40",
        "0+1@1/s",
        "1+0@1/s",
        "1+1@0/s",
        "1+1@-1/s",
        "1+1@1/s ",
        "²+1@1/s",
        "1.5+1@1/s",
    ],
)
def test_a_wrong_load_is_named_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        ExpectedLoad.parse(text)
    assert str(raised.value) == f"load must be IN+OUT@RATE/s, such as 512+128@40/s, not {text!r}"


def test_times_have_units() -> None:
    assert Targets.parse("1.5s", "60ms") == Targets(1.5, 0.06)


@pytest.mark.parametrize("text", ["", "1", "0s", "-1s", "1m", "nan", "1 s", "1e3s"])
def test_a_wrong_time_is_named_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^ttft-p99 must be a time such as 1s or 60ms, not "):
        Targets.parse(text, "60ms")
    with pytest.raises(ConfigError, match=r"^itl-p99 must be a time such as 1s or 60ms, not "):
        Targets.parse("1s", text)


LOAD = ExpectedLoad(512, 128, 1.0)


def roofline_of(quantize: str | None = None, kv_dtype: str | None = None) -> Roofline:
    config = replace(PRESETS["2b"], kv_dtype=kv_dtype)
    return compute_roofline(config, DEVICES["v5e"], 2, quantize=quantize)


def simulated(roofline: Roofline, itl_target_s: float | None) -> float:
    """Returns the requests per second of a simulated replica whose queue is never empty.

    Prompts that end between two decode steps share first tokens.
    """
    mix = mix_on((LOAD,), roofline, itl_target_s)
    saved = 1 - LOAD.output_tokens / mix.chip.slots
    mix = replace(mix, prompts_s=(mix.prompts_s[0] - saved * mix.first_token_s,))
    clock, jobs = Clock(), list[SimulatedRequest]()
    replica = Replica(clock, 0, mix.chip, mix.prefill_tokens)
    round_s = 3 * mix.chip.slots * mix.busy_s

    def refill() -> None:
        while replica.submit(job := SimulatedRequest(Arrival(clock.now, 0, LOAD.output_tokens))):
            jobs.append(job)
        clock.call_later(64 * mix.busy_s, refill)

    refill()
    clock.run(round_s)
    before = sum(job.end is not None for job in jobs)
    clock.run(2 * round_s)
    return (sum(job.end is not None for job in jobs) - before) / round_s


@pytest.mark.parametrize("itl_target_s", [None, 0.0])
def test_as_many_requests_end_as_in_a_simulation(itl_target_s: float | None) -> None:
    plain = roofline_of()
    rate = saturated_requests_per_s(LOAD, plain, itl_target_s)
    assert rate == pytest.approx(simulated(plain, itl_target_s), rel=0.02)


def test_a_request_takes_what_its_programs_take() -> None:
    """16.93 ms by the compiler (benchmarks/tpu-programs.md); in int8 it ends more requests.

    Decode steps count by the share of the roofline that they reach with full windows, which is less than with others.
    """
    rate = saturated_requests_per_s(LOAD, roofline_of(), 0.0)
    assert rate == pytest.approx(1 / 0.01693, rel=0.07)
    assert saturated_requests_per_s(LOAD, roofline_of("int8", "int8"), 0.0) > 1.5 * rate


def test_a_short_target_leaves_less_time_for_prefill() -> None:
    rates = [saturated_requests_per_s(LOAD, roofline_of(), seconds) for seconds in (0.0, 0.01)]
    assert rates[0] > rates[1]


def test_one_slot_prefills_and_decodes_in_turn() -> None:
    lone = replace(roofline_of(), slots=1)
    mix = mix_on((LOAD,), lone, None)
    seconds = mix.prompts_s[0] + 128 * mix.chip.decode(1)
    assert saturated_requests_per_s(LOAD, lone, None) == pytest.approx(1 / seconds)
