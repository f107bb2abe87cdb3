"""A simulated device: its clock, its faults, and tokens that are a pure function of prompt, seed, position and mask."""

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from roost.engine import EngineDeadError, Simulation, compute_roofline, find_device, simulation
from roost.engine.model.config import PRESETS
from roost.engine.simulation import SimulatedDevice, SlotTokens, StepDurations, wait_until
from roost.engine.types.output_constraint import TokenMask, mask_of_ids, words_of_mask
from roost.engine.types.request import Request
from roost.engine.types.sampling_params import NO_TOKEN, SamplingParams


def durations(text: str, count: int = 20, seconds: float = 100.0) -> list[float]:
    """Durations of steps that are dispatched at once, on a clock that stands still."""
    device, start = SimulatedDevice(Simulation.parse(text), seed=0), 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulation, "time", SimpleNamespace(monotonic=lambda: start))
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


VOCAB = 4096
WORDS = words_of_mask(VOCAB)
END = 1


def request(prompt: Sequence[int] = (5, 6, 7), stop_ids: Sequence[int] = (), **params: float) -> Request:
    sampling = SamplingParams(end_token_ids=tuple(stop_ids), **params)  # type: ignore[arg-type]
    return Request("a", tuple(prompt), sampling)


def slot_tokens(output_tokens: int = 200) -> SlotTokens:
    return SlotTokens(8, VOCAB, output_tokens)


def text(of: Request, slot: int = 0, count: int = 20, neighbours: Sequence[Request] = ()) -> list[int]:
    """The first tokens of a request, beside neighbours in the slots after its own."""
    tokens = slot_tokens()
    for place, each in enumerate((of, *neighbours)):
        tokens.start(slot + place, each, len(each.prompt_token_ids) - 1, None)
    slots = np.arange(slot, slot + 1 + len(neighbours))
    return [tokens.draw(slots)[0] for _ in range(count)]


def masked(mask: TokenMask, of: Request, count: int) -> list[int]:
    tokens = slot_tokens()
    tokens.start(0, of, 2, mask)
    return [tokens.draw(np.array([0]))[0] for _ in range(count)]


def test_neither_slot_nor_neighbours_matter() -> None:
    alone = text(request(seed=3))
    assert text(request(seed=3), slot=4, neighbours=[request([9]), request([8, 8])]) == alone
    assert len(set(alone)) > 15


def test_a_seed_matters_unless_the_request_is_greedy() -> None:
    assert text(request(seed=3)) != text(request(seed=4))
    assert text(request(seed=3, temperature=0.0)) == text(request(seed=4, temperature=0.0))
    assert text(request([5, 6, 8])) != text(request([5, 6, 7]))


def test_a_text_goes_on_at_any_position() -> None:
    tokens, whole = slot_tokens(), text(request(seed=3))
    tokens.start(2, request(seed=3), 2 + 12, None)
    tokens.move(2, 5)
    assert [tokens.draw(np.array([5]))[0] for _ in range(8)] == whole[12:]


def test_tokens_are_words_of_the_vocabulary() -> None:
    assert all(1024 <= token < VOCAB for token in text(request(), count=500))
    tiny = SlotTokens(1, 5, 200)
    tiny.start(0, request(), 2, None)
    assert {tiny.draw(np.array([0]))[0] for _ in range(50)} <= set(range(5))


def test_lengths_have_the_mean_that_is_asked_for() -> None:
    tokens, lengths = SlotTokens(500, VOCAB, 40), np.zeros(500)
    for slot in range(500):
        tokens.start(slot, request([slot], stop_ids=[END]), 0, None)
    running = np.arange(500)
    while len(running):
        drawn = np.array(tokens.draw(running))
        lengths[running] += 1
        running = running[drawn != END]
    assert 34 < lengths.mean() < 46  # three standard errors of a geometric distribution
    assert 25 < lengths.std() < 55


def test_a_text_is_as_long_as_it_must_be_and_never_ends_without_an_end() -> None:
    tokens = SlotTokens(2, VOCAB, 1)
    tokens.start(0, request(stop_ids=[END], min_tokens=5), 2, None)
    tokens.start(1, request(), 2, None)
    drawn = [tokens.draw(np.array([0, 1])) for _ in range(6)]
    assert [first == END for first, _ in drawn] == [False] * 5 + [True]
    assert all(second != END for _, second in drawn)


def test_tokens_obey_the_mask() -> None:
    allowed = [3, 40, 41, 42, 100]
    drawn = masked(mask_of_ids(allowed, WORDS), request(stop_ids=[END]), 60)
    assert set(drawn) == set(allowed)
    assert masked(mask_of_ids([3, END], WORDS), request(stop_ids=[END]), 1) == [END]
    assert masked(mask_of_ids([3, END], WORDS), request(stop_ids=[END], min_tokens=9), 1) == [3]
    assert masked(np.zeros(WORDS, np.uint32), request(), 1) == [NO_TOKEN]


@pytest.mark.parametrize("field", ["allowed_token_ids", "bad_words"])
def test_masks_of_requests_are_obeyed_from_the_first_token_on(field: str) -> None:
    """Both of the static mask's directions."""
    if field == "allowed_token_ids":
        of = Request("a", (5, 6, 7), SamplingParams(allowed_token_ids=(7, 8)))
        assert set(text(of, count=40)) == {7, 8}
    else:
        banned = text(request())[0]
        of = Request("a", (5, 6, 7), SamplingParams(bad_words=((banned,),)))
        assert banned not in text(of, count=40)
