"""The clock of a simulated device, and its faults."""

import math
import time
from itertools import pairwise
from types import SimpleNamespace

import pytest
from roost.engine import EngineDeadError, Simulation, compute_roofline, find_device
from roost.engine.model.config import PRESETS
from roost.engine.simulation import device as simulation_device
from roost.engine.simulation.device import SimulatedDevice, StepDurations, wait_until


def durations(text: str, count: int = 20, seconds: float = 100.0) -> list[float]:
    """Durations of steps that are dispatched at once, on a clock that stands still."""
    device, start = SimulatedDevice(Simulation.parse(text), seed=0), 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation_device, "time", SimpleNamespace(monotonic=lambda: start))
        ends = [start, *(device.dispatch(seconds) for _ in range(count))]
    return [end - start for start, end in pairwise(ends)]


def test_steps_run_one_after_the_other() -> None:
    assert durations("v5e") == pytest.approx([100.0] * 20, abs=1)


def test_jitter_is_bounded_and_the_same_each_time() -> None:
    jittered = durations("v5e,jitter=0.2")
    assert all(79 < each < 121 for each in jittered)
    assert max(jittered) - min(jittered) > 10
    assert durations("v5e,jitter=0.2") == pytest.approx(jittered, abs=1)


def test_a_slow_device_takes_ten_times_as_long() -> None:
    assert durations("v5e,fault=slow@2", 4) == pytest.approx([100, 100, 1000, 1000], abs=1)


def test_a_stuck_step_never_ends() -> None:
    assert math.isinf(durations("v5e,fault=stuck@2", 3)[-1])


def test_a_dying_device_ends_the_engine() -> None:
    with pytest.raises(EngineDeadError, match="lost after 2 steps"):
        durations("v5e,fault=dying@2", 3)


def test_waiting_ends_at_the_time() -> None:
    end = time.monotonic() + 0.02
    wait_until(end)
    assert time.monotonic() >= end


def times(text: str) -> StepDurations:
    return StepDurations(compute_roofline(PRESETS["2b"], find_device("v5e"), 2), Simulation.parse(text))


def test_the_pace_is_near_the_schedules_of_compiled_programs() -> None:
    """Steps of `benchmarks/tpu-programs.md`: 608 and 8 rows of 2B on a v5e, and a prefill of 512 tokens."""
    full = PRESETS["2b"].window
    assert times("v5e").decode_seconds(608, 608 * full) == pytest.approx(31.4e-3, rel=0.05)
    assert times("v5e").decode_seconds(8, 8 * full) == pytest.approx(7.6e-3, rel=0.5)  # it is quicker
    assert times("v5e").prefill_seconds(512) == pytest.approx(11.9e-3, rel=0.05)


def test_windows_that_are_not_full_are_quicker_and_so_is_a_better_efficiency() -> None:
    assert times("v5e").decode_seconds(608, 0) < 0.9 * times("v5e").decode_seconds(608, 608 * 2048)
    assert times("v5e,efficiency=1").decode_seconds(608, 0) == pytest.approx(0.62 * times("v5e").decode_seconds(608, 0))


def test_sampling_first_tokens_and_restoring_prompts_take_time() -> None:
    with_samples, without = (times("v5e").prefill_seconds(512, steps) for steps in (2, 0))
    assert with_samples - without == pytest.approx(2 * times("v5e").prefill_seconds(0, 1))
    assert times("v5e").prefill_seconds(64) == pytest.approx(times("v5e").prefill_seconds(128))


def test_a_pace_of_its_own_replaces_the_rooflines() -> None:
    own = times("step_ms=9.8,prefill_tokens_per_s=40000")
    assert own.decode_seconds(8, 0) == own.decode_seconds(512, 10**6) == pytest.approx(9.8e-3)
    assert own.prefill_seconds(400, 1) == pytest.approx(0.01)
