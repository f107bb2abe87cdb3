"""Requests per second of a replica that always has more of them than slots, against a simulation of it."""

from dataclasses import replace

import pytest
from roost.engine.capacity.roofline import DEVICES, Roofline, compute_roofline
from roost.engine.model.config import PRESETS
from roost.engine.planning.replica import Arrival, Clock, Replica, SimulatedRequest
from roost.engine.planning.replicas import ExpectedLoad, mix_on, saturated_requests_per_s

LOAD = ExpectedLoad(512, 128, 1.0)


def roofline(quantize: str | None = None, kv_dtype: str | None = None) -> Roofline:
    config = replace(PRESETS["2b"], kv_dtype=kv_dtype)
    return compute_roofline(config, DEVICES["v5e"], 2, quantize=quantize)


def simulated(roofline: Roofline, itl_target_s: float | None) -> float:
    """Returns the requests per second of a simulated replica whose queue is never empty.

    Prompts that end between two decode steps share first tokens.
    """
    mix = mix_on((LOAD,), roofline, "v5e", itl_target_s)
    saved = 1 - LOAD.output_tokens / mix.chip.slots
    mix = replace(mix, prompts_s=(mix.prompts_s[0] - saved * mix.first_token_s,))
    clock, jobs = Clock(), list[SimulatedRequest]()
    replica = Replica(clock, 0, mix.chip, mix)
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
    plain = roofline()
    rate = saturated_requests_per_s(LOAD, plain, "v5e", itl_target_s)
    assert rate == pytest.approx(simulated(plain, itl_target_s), rel=0.02)


def test_a_request_takes_what_its_programs_take() -> None:
    """16.93 ms by the compiler (benchmarks/tpu-programs.md); in int8 it ends more requests.

    Decode steps count by the share of the roofline that they reach with full windows, which is less than with others.
    """
    rate = saturated_requests_per_s(LOAD, roofline(), "v5e", 0.0)
    assert rate == pytest.approx(1 / 0.01693, rel=0.07)
    assert saturated_requests_per_s(LOAD, roofline("int8", "int8"), "v5e", 0.0) > 1.5 * rate


def test_a_short_target_leaves_less_time_for_prefill() -> None:
    rates = [saturated_requests_per_s(LOAD, roofline(), "v5e", seconds) for seconds in (0.0, 0.01)]
    assert rates[0] > rates[1]


def test_one_slot_prefills_and_decodes_in_turn() -> None:
    lone = replace(roofline(), slots=1)
    mix = mix_on((LOAD,), lone, "v5e", None)
    seconds = mix.prompts_s[0] + 128 * mix.chip.decode(1)
    assert saturated_requests_per_s(LOAD, lone, "v5e", None) == pytest.approx(1 / seconds)
