"""Preemptible requests: which enter, which give way, and whose prompts are next."""

from collections import Counter
from dataclasses import replace

import pytest
from roost.engine.scheduling.batch_planner import num_waiting
from roost.engine.scheduling.preemption import Preemption
from roost.engine.scheduling.prefill_budget import StepTimes
from roost.engine.scheduling.running_request import RunningRequest
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.scheduling.slots import SlotAssignment, SlotPool, WaitingQueue
from roost.engine.types.config import StepLimits
from roost.engine.types.request import DecodeBatch, Request
from simulated_device import LIMITS, Simulation, decode, measured, prefill


def preemption_of(slots: int, times: StepTimes, limits: StepLimits = LIMITS) -> Preemption:
    assignment = SlotAssignment(SlotPool(slots), WaitingQueue(10))
    return Preemption(assignment, limits, times, 0)


def test_preemptible_requests_leave_room_for_others_and_for_a_moment_after_them() -> None:
    """Beside others, four requests may run in all, as more take too long."""
    limits = StepLimits(512, decode_rows=(4, 8))
    times, queue = StepTimes(limits), WaitingQueue(10)
    for rows, seconds in ((4, 0.01), (8, 1.0)):
        times.record(DecodeBatch((Request("a", (1,)),) * rows, tuple(range(rows))), seconds)
    slots = SlotAssignment(SlotPool(8), queue)
    preemption = Preemption(slots, limits, times, 0)
    for number in range(7):
        preemption.add(Request(f"{number}", (1,), preemptible=True))
    preemption.assign(0.0)
    assert len(preemption.running) == 7
    queue.add(Request("other", (1,)))
    preemption.add(Request("7", (1,), preemptible=True))
    assert preemption.victims(can_replay=True) == []  # a slot is free
    preemption.assign(0.1)
    over = preemption.victims(can_replay=True)
    assert [running.request.id for running in over] == ["6", "5", "4", "3"]
    assert preemption.num_slots == 3
    for running in over:
        preemption.preempt(running, None)
    preemption.assign(0.2)
    assert (len(preemption.running), preemption.victims(can_replay=True)) == (3, [])
    slots.release(slots.running["other"], 0.3)
    assert preemption.num_slots == 8, "no other request runs"
    preemption.assign(0.4)
    assert len(preemption.running) == 3
    preemption.assign(0.5)
    assert len(preemption.running) == 8


@pytest.mark.parametrize(
    ("target_s", "others", "rows"),
    [
        (None, 0, 32),
        (None, 3, 4),
        (None, 4, 4),
        (None, 6, 8),
        (None, 20, 32),
        (0.001, 6, 8),
        (0.04, 1, 32),
        (0.03, 4, 16),
        (0.0, 4, 32),
    ],
)
def test_preemptible_requests_take_rows_that_delay_others_little(
    target_s: float | None, others: int, rows: int
) -> None:
    """Or for which a step and a slice of a prompt keep a target that was set. Rows of padding cost nothing."""
    preemption = preemption_of(32, measured(), replace(LIMITS, itl_target_s=target_s))
    assert preemption.max_rows(others) == preemption.max_rows(others, is_entry=True) == rows


def test_none_comes_or_goes_where_they_delay_others_by_a_tenth() -> None:
    times = StepTimes(LIMITS)
    for rows, seconds in ((4, 0.006), (8, 0.0066), (16, 0.02)):
        times.record(decode(rows), seconds)
    preemption = preemption_of(16, times)
    assert (preemption.max_rows(2), preemption.max_rows(2, is_entry=True)) == (8, 4)


def test_none_comes_beside_others_before_a_step_without_any_is_measured() -> None:
    times = StepTimes(LIMITS)
    times.record(decode(32), 0.026)
    preemption = preemption_of(32, times)
    assert (preemption.max_rows(3), preemption.max_rows(3, is_entry=True)) == (32, 4)
    times.record(decode(4), 0.025)
    assert (preemption.max_rows(3), preemption.max_rows(3, is_entry=True)) == (32, 32)


def test_preemptible_prompts_take_a_tenth_of_the_time_of_decode_steps() -> None:
    preemption = preemption_of(8, measured())
    streams = [RunningRequest(Request(str(slot), (1,)), slot) for slot in range(4)]
    other, prompt = (RunningRequest(Request(str(slot), (1,), preemptible=slot == 5), slot) for slot in (4, 5))
    demand = preemption.demand([prompt], streams)
    preemption.book(prefill(64), [other], demand)
    assert preemption.demand([prompt], streams).prompts == [prompt]
    preemption.book(prefill(64), [prompt], demand)  # 5 ms
    for _ in range(4):
        preemption.book(decode(4, 2), streams, demand)  # of 6 ms each
        assert preemption.demand([prompt], streams).prompts == []
    assert preemption.demand([prompt], []).prompts == [prompt]  # nobody waits for tokens
    preemption.book(decode(4), streams, demand)
    assert preemption.demand([prompt], streams).prompts == [prompt]


def test_prompts_of_other_requests_go_before_preemptible_ones() -> None:
    preemption = preemption_of(8, measured())
    urgent, *background = (RunningRequest(Request(str(slot), (1,), preemptible=slot > 0), slot) for slot in range(4))
    demand = preemption.demand([*background, urgent], [])
    assert (demand.prompts, demand.is_urgent) == ([urgent], True)
    assert num_waiting(demand, [*background, urgent]) == 4  # nobody waits for tokens
    demand = preemption.demand(background, [urgent])
    assert (demand.prompts, demand.is_urgent, demand.num_streams) == (background, False, 1)
    assert num_waiting(demand, background) == 1  # none delays the stream


def test_tenants_take_turns_at_slots_for_preemptible_requests() -> None:
    """Requests that have lost a slot are ahead of all others of their tenant."""
    preemption = preemption_of(2, StepTimes(LIMITS))
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        preemption.add(lent(name))
    for name in ("a5", "a4"):
        preemption._assignment.start(lent(name), None, 0.0)
        preemption.preempt(preemption.running[name], None)
    order = [preemption.pop({}).request.id for _ in range(8)]
    assert order == ["a4", "b1", "c1", "a5", "b2", "a1", "a2", "a3"]
    preemption.add(lent("b3"))
    preemption.add(lent("a6"))
    assert preemption.pop({}).request.id == "b3"


def test_a_tenant_whose_requests_run_for_long_leaves_slots_to_others() -> None:
    """The next slot is of the tenant that holds fewer, so that short requests do not wait for long ones in turn."""
    preemption = preemption_of(4, StepTimes(LIMITS))
    slots = preemption._assignment
    for name in ("a1", "a2", "a3", "a4", "a5", "a6", "b1", "b2", "b3", "b4"):
        preemption.add(lent(name))
    preemption.assign(0.0)
    assert list(slots.running) == ["a1", "b1", "a2", "b2"]
    for name, started in (("b1", "b3"), ("b3", "b4"), ("b2", "a3"), ("b4", "a4")):
        slots.release(slots.running[name], 0.0)
        preemption.assign(0.0)
        assert list(slots.running)[-1] == started


def test_slots_pass_to_a_tenant_that_holds_fewer() -> None:
    """At once while it holds two fewer, and then each in turn after two seconds."""
    preemption = preemption_of(3, StepTimes(LIMITS))
    for name in ("a1", "a2", "a3", "a4"):
        preemption.add(lent(name))
    assert [step(preemption, now) for now in (0.0, 0.2)] == ["a1 a2 a3"] * 2, "nobody else waits"
    preemption.add(lent("b1"))
    preemption.add(lent("b2"))
    seen = [step(preemption, now) for now in (0.4, 2.1, 2.3, 2.5, 2.7)]
    assert seen == ["a1 a2 b1", "a1 a2 b1", "a2 b1 b2", "a2 b1 b2", "a2 b2 a1"]
    for now in range(3, 40):
        held = Counter(name[0] for name in step(preemption, float(now)).split())
        assert held in ({"a": 1, "b": 2}, {"a": 2, "b": 1})


def test_a_single_slot_goes_round() -> None:
    preemption = preemption_of(1, StepTimes(LIMITS))
    for name in ("a1", "a2", "b1", "c1"):
        preemption.add(lent(name))
    seen = [step(preemption, float(now)) for now in range(13)]
    assert seen == [*["a1"] * 3, *["b1"] * 3, *["c1"] * 3, *["a1"] * 3, "b1"]


def step(preemption: Preemption, now: float) -> str:
    """Takes and assigns slots as the engine does before each step; returns the names of those that have one."""
    for running in preemption.victims(can_replay=True):
        preemption.preempt(running, None)
    preemption.assign(now)
    return " ".join(preemption._assignment.running)


def test_endless_lines_of_one_tenant_let_others_run() -> None:
    """In slots that a stream leaves, too. No line of either is lost."""
    simulation = Simulation(Scheduler(8, 100, LIMITS))
    simulation.add("stream", 64, 3000)
    for number in range(12):
        simulation.add(f"endless {number}", 64, 3000, preemptible=True, tenant="endless")
    while simulation.now < 2:
        simulation.step()
    for number in range(4):
        simulation.add(f"short {number}", 64, 8, preemptible=True, tenant="short")
    simulation.run()
    ends = {name: arrivals[-1] for name, arrivals in simulation.arrivals.items()}
    assert max(ends[f"short {number}"] for number in range(4)) < 4
    assert min(ends[f"endless {number}"] for number in range(12)) > 15


def test_one_long_prompt_gets_a_slot_in_a_step() -> None:
    """To look it up takes the engine's time, for which others wait."""
    preemption = preemption_of(8, StepTimes(LIMITS))
    for name, length in (("short", 1), ("a", 2**18), ("b", 2**18), ("c", 2**18)):
        preemption.add(Request(name, (1,) * length, preemptible=True))
    for num_running in (2, 3, 4):
        preemption.assign(0.0)
        assert len(preemption.running) == num_running


def lent(name: str) -> Request:
    """Returns a preemptible request of the tenant that its name begins with."""
    return Request(name, (1,), tenant=name[0], preemptible=True)
