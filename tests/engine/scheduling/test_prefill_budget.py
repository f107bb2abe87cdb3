"""How much prefill runs between two decode steps, durations of steps, and estimates of those never measured."""

import math
import random
import statistics
from collections.abc import Iterable
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from roost.engine.scheduling.prefill_budget import PrefillBudget, StepTimes, prefill_seconds
from roost.engine.scheduling.scheduler import Scheduler
from roost.engine.types.config import StepLimits
from roost.engine.types.request import DecodeBatch, FirstToken, PrefillBatch, PrefillChunk
from simulated_device import (
    DECODE,
    LIMITS,
    PREFILL,
    REQUEST,
    Simulation,
    decode,
    measured,
    prefill,
    record_all,
    seconds_of,
)

LINGER_S = 0.3
"""More than the seconds for which slots of others that have ended stay free."""

SAMPLED = FirstToken(REQUEST, 0)
RESTORED = PrefillChunk(REQUEST, 0, 4096, 0, is_last=True)


@pytest.mark.parametrize(
    ("target_s", "decoding", "waiting", "seconds"),
    [
        (None, 8, 1, 0.85 * 2.9 * 0.008 - 0.008),
        (None, 16, 1, 0.85 * 2.9 * 0.014 - 0.014),
        (0.1, 8, 1, 0.85 * 0.1 - 0.008),
        (0.1, 8, 2, 0.85 * 0.1 - 0.008),
        (0.1, 8, 4, 0.85 * 0.1 * 3 - 0.008),
        (0.1, 32, 3, 0.85 * 0.1 - 0.026),
        (0.1, 32, 4, 0.85 * 0.1 * 2 - 0.026),
        (0.0, 8, 1, 32 * 0.008),
        (0.0, 8, 24, 32 * 0.008),
    ],
)
def test_time_between_decode_steps(target_s: float | None, decoding: int, waiting: int, seconds: float) -> None:
    assert prefill_seconds(target_s, measured(), decoding, waiting, decoding) == pytest.approx(seconds)


def test_the_target_is_that_of_streams_alone() -> None:
    """Though all rows are in the step."""
    assert prefill_seconds(None, measured(), 16, 1, num_streams=8) == pytest.approx(0.85 * 2.9 * 0.008 - 0.014)
    assert prefill_seconds(0.1, measured(), 16, 3, num_streams=4) == pytest.approx(0.85 * 0.1 * 4 - 0.014)
    budget = PrefillBudget(replace(LIMITS, itl_target_s=0.001), measured())
    assert budget.max_tokens(8, 1, num_streams=1) == 64
    assert budget.max_tokens(8, 1, num_streams=0) == 512  # nobody waits for tokens


def test_a_step_with_free_slots_between_is_one_of_more_rows() -> None:
    times = StepTimes(LIMITS)
    times.record(DecodeBatch((REQUEST,) * 2, (1, 6)), 0.008)
    assert (times.has_decode(2), times.has_decode(8)) == (False, True)
    in_order = StepTimes(replace(LIMITS, slot_order=(0, 16, 1, 17)))
    in_order.record(DecodeBatch((REQUEST,) * 2, (0, 17)), 0.006)
    assert in_order.has_decode(4)


def test_no_time_is_known_before_a_decode_step() -> None:
    times = StepTimes(LIMITS)
    times.record(prefill(512), 0.2)
    assert prefill_seconds(None, times, 1, 9, 1) == 0


@pytest.mark.parametrize(
    ("target_ms", "tokens"), [(1, 64), (17, 64), (20, 128), (30, 256), (45, 512), (1000, 512), (0, 512)]
)
def test_the_longest_chunk_of_which_a_slice_fits_is_next(target_ms: float, tokens: int) -> None:
    budget = PrefillBudget(replace(LIMITS, itl_target_s=target_ms / 1e3), measured())
    assert budget.max_tokens(8, 1, 8) == tokens


def test_nothing_limits_prefill_while_no_request_decodes() -> None:
    budget = PrefillBudget(LIMITS, measured())
    for _ in range(3):
        assert budget.max_tokens(0, 1, 0) == 512
        budget.spend(prefill(512), num_decoding=8)


def test_slices_run_until_the_time_is_spent() -> None:
    """Three of 5 ms fit beside a decode step of 8 ms."""
    budget = PrefillBudget(replace(LIMITS, prefill_chunk=64, itl_target_s=0.024 / 0.85), measured())
    assert budget.max_tokens(8, 1, 8) == 64
    for index in range(3):
        assert budget.allows(prefill(64, layer_slice=index), 8, 1, 8)
        budget.spend(prefill(64, layer_slice=index), num_decoding=8)
    assert not budget.allows(prefill(64, layer_slice=3), 8, 1, 8)
    budget.renew()
    assert budget.allows(prefill(64, layer_slice=3), 8, 1, 8)


def test_a_single_step_runs_between_two_decode_steps_however_long_it_takes() -> None:
    budget = PrefillBudget(replace(LIMITS, itl_target_s=0.001), measured())
    assert budget.max_tokens(8, 1, 8) == 64
    budget.spend(prefill(64, layer_slice=0), num_decoding=8)
    assert budget.max_tokens(8, 1, 8) == 0
    assert not budget.allows(prefill(64, layer_slice=1), 8, 1, 8)


@pytest.mark.parametrize("chunk", [64, 128, 192, 320, 512])
def test_chunks_stay_within_the_limit(chunk: int) -> None:
    """A chunk need not be a power of two."""
    budget = PrefillBudget(replace(LIMITS, prefill_chunk=chunk, itl_target_s=0.0), measured())
    assert budget.max_tokens(8, 1, 8) == chunk


# --- with a scheduler


def burst(target_s: float | None, *, preemptible: bool = False) -> Simulation:
    """Runs 32 requests of 512 + 128 tokens that arrive at once."""
    simulation = Simulation(Scheduler(32, 100, replace(LIMITS, itl_target_s=target_s)))
    for number in range(32):
        simulation.add(str(number), 512, 128, preemptible=preemptible)
    return simulation.run()


def test_time_of_a_burst_is_near_that_of_its_phases() -> None:
    phases = 32 * PREFILL[512] + 127 * DECODE[32]
    assert burst(0.0).now <= 1.10 * phases
    assert burst(None).now <= 1.10 * phases


def test_preemptible_requests_run_for_throughput() -> None:
    """If no other request decodes, whatever the target."""
    assert burst(0.01, preemptible=True).now == burst(0.0).now < burst(0.01).now


def seconds_beside_long_prompts(tenant: str) -> float:
    """Returns when a tenant's short preemptible requests end beside long preemptible prompts of the tenant "long"."""
    simulation = Simulation(Scheduler(32, 100, LIMITS))
    for number in range(16):
        simulation.add(f"long {number}", 4096, 2, preemptible=True, tenant="long")
    for number in range(8):
        simulation.add(f"short {number}", 64, 32, preemptible=True, tenant=tenant)
    simulation.run()
    return max(simulation.arrivals[f"short {number}"][-1] for number in range(8))


def test_long_prompts_of_one_tenant_let_the_lines_of_others_decode() -> None:
    assert seconds_beside_long_prompts("short") < 0.1 * seconds_beside_long_prompts("long")


FLAT = {4: 0.006, 8: 0.0062, 16: 0.0065, 32: 0.0068}
"""Seconds of a decode step that is bound by reading the weights, as on accelerators."""


@settings(max_examples=15, deadline=None)
@given(
    target_s=st.none() | st.sampled_from([0.03, 0.06]),
    table=st.sampled_from([DECODE, FLAT]),
    streams=st.lists(st.tuples(st.integers(1, 300), st.integers(20, 200)), min_size=1, max_size=6),
    background=st.lists(st.tuples(st.integers(1, 600), st.integers(1, 80)), min_size=1, max_size=50),
)
def test_preemptible_requests_delay_streams_little(
    target_s: float | None,
    table: dict[int, float],
    streams: list[tuple[int, int]],
    background: list[tuple[int, int]],
) -> None:
    """Or keep a target that was set. Every request ends; preemptible prompts take a tenth of the decode time."""
    simulation = Simulation(Scheduler(32, 100, replace(LIMITS, itl_target_s=target_s)), decode=table)
    record_all(simulation.scheduler._times, decode_s=table)
    for kind, requests in (("stream", streams), ("background", background)):
        for number, (prompt, new) in enumerate(requests):
            simulation.add(f"{kind} {number}", prompt, new, preemptible=kind == "background")
    simulation.run()
    assert all(simulation.arrivals.values())
    spans = [
        (simulation.arrivals[f"stream {number}"][0], simulation.arrivals[f"stream {number}"][-1])
        for number in range(len(streams))
    ]
    steps = prompts = 0.0
    is_between_slices = False
    for batch, end in simulation.batches:
        start = end - seconds_of(batch, decode=table)
        is_beside = any(first <= start and end <= last for first, last in spans)
        if isinstance(batch, DecodeBatch):
            num_others = sum(start < last + LINGER_S for _, last in spans)
            if is_beside and not is_between_slices:  # when no state can be moved to a lower row
                most = 1.15 * table[next(rows for rows in table if rows >= num_others)]
                room = target_s / 1.05 if target_s else 0.0  # what is planned of a target where durations don't vary
                most = max(most, room - PREFILL[64] / LIMITS.prefill_layer_slices)
                assert (end - start) / batch.steps <= most + 1e-9
            steps += is_beside * (end - start)
        else:
            is_between_slices = not batch.is_last_slice
            prompts += is_beside * batch.rows[0].request.preemptible * (end - start)
    assert prompts <= 0.1 * steps + PREFILL[512]


def gaps_beside_prompts(simulation: Simulation) -> list[float]:
    """Returns the times between tokens of six streams while long prompts arrive one after the other."""
    for number in range(6):
        simulation.add(f"stream {number}", 64, 1000)
    while simulation.now < 1:
        simulation.step()
    begin = simulation.now
    for number in range(6):
        if number == 2:  # all sizes are measured by then
            begin = simulation.now
        simulation.add(f"long {number}", 2048, 1)
        while not simulation.arrivals[f"long {number}"]:
            simulation.step()
    return [gap for number in range(6) for gap in simulation.gaps(f"stream {number}", begin)]


@pytest.mark.parametrize("target_s", [None, 0.03, 0.06, 0.1])
@pytest.mark.parametrize("deviation", [0.0, 0.2])
def test_one_prompt_after_the_other_keeps_the_target(target_s: float | None, deviation: float) -> None:
    """The 99th percentile does, whether or not durations vary."""
    draw = random.Random(7)
    simulation = Simulation(
        Scheduler(32, 100, replace(LIMITS, itl_target_s=target_s)), noise=lambda: math.exp(draw.gauss(0, deviation))
    )
    gaps = gaps_beside_prompts(simulation)
    assert len(gaps) > 250
    assert statistics.quantiles(gaps, n=100)[98] <= (2.9 * DECODE[8] if target_s is None else target_s)


def test_steady_durations_leave_more_time_for_prompts() -> None:
    def seconds(deviation: float) -> float:
        draw = random.Random(7)
        simulation = Simulation(
            Scheduler(32, 100, replace(LIMITS, itl_target_s=0.06)), noise=lambda: math.exp(draw.gauss(0, deviation))
        )
        gaps_beside_prompts(simulation)
        return simulation.now

    assert seconds(0.0) < 0.95 * seconds(0.2)


@settings(max_examples=40)
@given(
    target_s=st.none() | st.floats(0, 0.5),
    prompts=st.lists(st.tuples(st.integers(1, 700), st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=6),
)
def test_neither_prefill_nor_decode_starves(target_s: float | None, prompts: list[tuple[int, int, int]]) -> None:
    """Whatever the target, a prefill step follows each decode step while a prompt waits, and every request ends."""
    simulation = Simulation(Scheduler(8, 100, replace(LIMITS, itl_target_s=target_s)))
    for number, (prompt, new, steps) in enumerate(prompts):
        simulation.add(str(number), prompt, new)
        for _ in range(steps):
            simulation.step()
    simulation.run()
    assert simulation.scheduler.next_timeout == math.inf
    assert all(simulation.arrivals.values())
    left = {str(number): prompt for number, (prompt, _, _) in enumerate(prompts)}
    started, was_decode = set[str](), False
    for batch, _ in simulation.batches:
        if isinstance(batch, DecodeBatch):
            assert not (was_decode and any(left[name] for name in started)), "two decode steps while a prompt waits"
        elif batch.is_last_slice:
            for chunk in batch.chunks:
                started.add(chunk.request.id)
                left[chunk.request.id] -= chunk.length
        was_decode = isinstance(batch, DecodeBatch)
    assert not any(left.values())


@given(
    target_s=st.none() | st.floats(0, 0.5),
    decoding=st.integers(1, 32),
    waiting=st.integers(1, 32),
)
def test_prefill_takes_no_longer_than_its_time(target_s: float | None, decoding: int, waiting: int) -> None:
    """A single step may take longer."""
    limits = replace(LIMITS, prefill_layer_slices=1, itl_target_s=target_s)
    times = measured(limits)
    budget, durations = PrefillBudget(limits, times), list[float]()
    while tokens := budget.max_tokens(decoding, waiting, decoding):
        budget.spend(prefill(tokens), num_decoding=8)
        durations.append(seconds_of(prefill(tokens), limits.prefill_layer_slices))
    assert durations
    assert sum(durations) <= prefill_seconds(target_s, times, decoding, waiting, decoding) + 1e-9 or len(durations) == 1


def test_nothing_is_known_at_first() -> None:
    times = StepTimes(LIMITS)
    assert times.decode(1) is times.quiet(1) is times.prefill(64) is times.step(prefill(64)) is None
    assert times.step(PrefillBatch((RESTORED,), (SAMPLED,))) is None


def test_requests_are_rounded_up_to_compiled_rows() -> None:
    times = StepTimes(LIMITS)
    times.record(decode(5), 0.008)
    times.record(decode(9), 0.014)
    assert [times.decode(rows) for rows in (1, 5, 8, 9, 16)] == [0.008, 0.008, 0.008, 0.014, 0.014]


def test_quiet_steps_are_measured_apart() -> None:
    """Several tokens per dispatch cost less each. Without such a dispatch, any decode step counts."""
    times = StepTimes(LIMITS)
    times.record(decode(4, steps=8), 0.040)
    assert (times.decode(4), times.quiet(4)) == (0.005, 0.005)
    times.record(decode(4), 0.007)
    assert (times.decode(4), times.quiet(4)) == (0.007, 0.005)
    times.record(decode(16), 0.020)
    assert (times.decode(16), times.quiet(16)) == (0.020, 0.020)


def test_a_mean_follows_a_lasting_change() -> None:
    times = StepTimes(LIMITS)
    times.record(prefill(512), 0.1)
    for _ in range(40):
        times.record(prefill(512), 0.2)
    assert times.prefill(512) == pytest.approx(0.2, rel=0.01)
    for _ in range(40):
        times.record(prefill(512), 0.05)
    assert times.prefill(512) == pytest.approx(0.05, rel=0.02)


def test_a_hiccup_changes_little() -> None:
    times = StepTimes(LIMITS)
    times.record(prefill(512), 0.1)
    times.record(prefill(512), 60.0)
    assert times.prefill(512) == pytest.approx(0.1125)
    times.record(prefill(256), 60.0)
    assert times.prefill(256) == pytest.approx(0.1125), "twice the estimate"


def test_unmeasured_sizes_are_estimated_from_the_nearest() -> None:
    """A larger size is expected to take half of what its tokens would, so that it is tried."""
    times = StepTimes(LIMITS)
    times.record(prefill(128), 0.1)
    assert [times.prefill(tokens) for tokens in (64, 128, 256, 512)] == pytest.approx([0.05, 0.1, 0.1, 0.2])
    times.record(prefill(64), 0.075)
    assert times.prefill(64) == pytest.approx(0.075)


def test_slices_and_first_tokens_are_kinds_of_their_own() -> None:
    times = StepTimes(LIMITS)
    for index in range(3):
        times.record(prefill(64, layer_slice=index), 0.01 + 0.001 * index)
    end = PrefillBatch((PrefillChunk(REQUEST, 0, 4032, 64, is_last=True),), (SAMPLED,), 2)
    times.record(end, 0.02)
    assert times.step(prefill(64, layer_slice=1)) == pytest.approx(0.011)
    assert times.step(end) == pytest.approx(0.02)


def test_tokens_count_with_padding_and_per_shard() -> None:
    times = StepTimes(StepLimits(512, shard_rows=2))
    times.record(prefill(70, 65, 128), 0.1)
    assert times.prefill(256) == 0.1, "two rows of 128 on the first shard, and one on the second"


def test_restored_prompts_and_first_tokens_alone_are_no_prefill() -> None:
    times, restored, sampled = StepTimes(LIMITS), PrefillBatch((RESTORED,)), PrefillBatch((), (SAMPLED,))
    times.record(restored, 0.004)
    assert (times.step(restored), times.step(sampled), times.prefill(64)) == (0.004, None, None)
    times.record(sampled, 0.001)
    assert (times.step(restored), times.step(sampled), times.prefill(64)) == (0.004, 0.001, None)


def record_pairs(times: StepTimes, ratios: Iterable[float]) -> None:
    """Records a slice and a decode step after it for each ratio of their durations to the usual ones."""
    for ratio in ratios:
        times.record(prefill(64), ratio * 0.006)
        times.record(decode(8), ratio * 0.004)


def test_little_room_is_left_where_durations_are_steady() -> None:
    times = StepTimes(LIMITS)
    assert times.overrun == pytest.approx(1 / 0.85)
    record_pairs(times, [1.0] * 2000)
    assert times.overrun == 1.05


def test_one_time_in_two_hundred_exceeds_the_overrun() -> None:
    times, chance = StepTimes(LIMITS), random.Random(3)
    ratios = [math.exp(chance.gauss(0, 0.2)) for _ in range(20_000)]
    record_pairs(times, ratios[:2000])
    found = []
    for ratio in ratios[2000:]:
        record_pairs(times, [ratio])
        found.append(times.overrun)
    exact = statistics.quantiles(ratios, n=200)[-1] / statistics.mean(ratios)
    assert statistics.mean(found) == pytest.approx(exact, rel=0.1)


def test_a_hiccup_is_one_time_of_many() -> None:
    times = StepTimes(LIMITS)
    record_pairs(times, [1.0, 1000.0])
    assert 1 / 0.85 < times.overrun < 1 / 0.85 + 0.1


def test_overruns_are_those_of_measured_steps_beside_prefill() -> None:
    """Neither a first step, of which nothing was known, nor a quiet step is one."""
    times = StepTimes(LIMITS)
    times.record(decode(8), 0.004)
    times.record(prefill(64), 1.0)
    times.record(decode(8), 1.0)
    for _ in range(10):
        times.record(decode(8), 1.0)
        times.record(decode(8, steps=2), 1.0)
    assert times.overrun == pytest.approx(1 / 0.85)
