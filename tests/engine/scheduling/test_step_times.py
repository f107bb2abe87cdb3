"""Durations of steps, and estimates of those that were never measured."""

import math
import random
import statistics
from collections.abc import Iterable

import pytest
from roost.engine.scheduling.prefill_budget import StepTimes
from roost.engine.types.config import StepLimits
from roost.engine.types.request import DecodeBatch, FirstToken, PrefillBatch, PrefillChunk, Request

REQUEST = Request("a", (1,) * 4096)
LIMITS = StepLimits(512, decode_rows=(4, 8, 16), prefill_layer_slices=3)
SAMPLED = FirstToken(REQUEST, 0)
RESTORED = PrefillChunk(REQUEST, 0, 4096, 0, is_last=True)


def prefill(*lengths: int, slots: int = 8, layer_slice: int = 0) -> PrefillBatch:
    chunks = tuple(PrefillChunk(REQUEST, slot % slots, 0, length, is_last=False) for slot, length in enumerate(lengths))
    return PrefillBatch(chunks, layer_slice=layer_slice)


def decode(rows: int, steps: int = 1) -> DecodeBatch:
    return DecodeBatch((REQUEST,) * rows, tuple(range(rows)), steps)


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
