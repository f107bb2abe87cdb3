"""Pure functions of `roost bench`: percentiles, lengths, arrivals, limits, tables."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
from growth import ends_of_stretches
from hypothesis import given
from hypothesis import strategies as st
from roost.server.commands.bench.report import (
    RequestTrace,
    in_ms,
    latencies_ms,
    median_of,
    meets,
    milliseconds,
    number,
    parse_objective,
    pick,
    shown_rate,
)
from roost.server.commands.bench.workload import (
    FIRST_ID,
    balanced_interval,
    draw_text,
    draw_token_ids,
    parse_lengths,
    poisson_times,
)
from roost.server.settings import SettingsError

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1)


@given(numbers)
def test_a_distribution_is_in_order(values: list[float]) -> None:
    found = in_ms(value / 1e3 for value in values)
    assert found is not None
    ladder = [found[name] for name in ("min", "p50", "p90", "p95", "p99", "max")]
    assert all(low <= high or math.isclose(low, high) for low, high in pairwise(ladder))
    assert found["count"] == len(values)
    assert found["mean"] == pytest.approx(float(np.mean(values)), rel=1e-9, abs=1e-6)


def test_nothing_has_no_distribution() -> None:
    assert in_ms([]) is None


def test_medians_are_taken_number_by_number() -> None:
    runs = [
        {"a": 1, "b": {"p50": 5.0}, "c": None},
        {"a": 9, "b": None, "c": None},
        {"a": 2, "b": {"p50": 7.0}, "c": None},
    ]
    assert median_of(runs) == {"a": 2, "b": {"p50": 6.0}, "c": None}


@pytest.mark.parametrize(("text", "low", "high"), [("512", 512, 512), ("100:900", 100, 900), ("7:7", 7, 7)])
def test_lengths(text: str, low: int, high: int) -> None:
    assert parse_lengths("--input-len", text) == range(low, high + 1)


@pytest.mark.parametrize("text", ["", "0", "-1", "5:1", "0:5", "1:2:3", "1.5", "a", "9999999999"])
def test_invalid_lengths_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--input-len"):
        parse_lengths("--input-len", text)


@given(st.floats(0.1, 1000), st.integers(0, 30), st.integers(0, 5))
def test_arrivals_rise_from_zero_and_repeat_with_their_seed(rate: float, count: int, seed: int) -> None:
    times = poisson_times(rate, count, random.Random(seed))
    assert len(times) == count
    assert list(times[:1]) == [0.0] * min(count, 1)
    assert all(before <= after for before, after in pairwise(times))
    assert times == poisson_times(rate, count, random.Random(seed))


def test_arrivals_keep_to_their_rate_with_gaps_of_a_poisson_process() -> None:
    times = poisson_times(50.0, 20001, random.Random(1))
    gaps = [after - before for before, after in pairwise(times)]
    assert float(np.mean(gaps)) == pytest.approx(1 / 50, rel=0.03)
    assert float(np.std(gaps)) == pytest.approx(1 / 50, rel=0.03)


def test_an_infinite_rate_sends_at_once() -> None:
    assert poisson_times(math.inf, 3, random.Random(0)) == [0.0, 0.0, 0.0]


def test_arrivals_that_keep_slots_busy() -> None:
    """In 6 steps, 2 read a prompt of 600 tokens and 4 give a token each to 32 requests: one answer of 128 tokens."""
    assert balanced_interval(input_len=600, output_len=128, concurrency=32, prefill_chunk=512) == 6


def trace(*times_s: float, failure: str | None = None, output_tokens: int | None = None) -> RequestTrace:
    tokens = len(times_s) if output_tokens is None else output_tokens
    return RequestTrace(0.0, list(times_s), 1.0, 3, tokens, failure=failure)


def test_times_of_a_request() -> None:
    found = latencies_ms([trace(0.1, 0.2, 0.4), trace(0.3)])
    assert found["ttft_ms"]["p50"] == pytest.approx(200)
    assert found["itl_ms"]["max"] == pytest.approx(200)
    assert found["itl_ms"]["count"] == 2
    assert found["tpot_ms"]["mean"] == pytest.approx(150)
    assert found["e2e_ms"]["mean"] == pytest.approx(1000)


def test_the_time_per_token_counts_tokens_and_not_pieces() -> None:
    assert trace(0.1, 0.5, output_tokens=5).tpot_s == pytest.approx(0.1)
    assert trace(0.1, output_tokens=1).tpot_s is None


@pytest.mark.parametrize(
    ("words", "is_met"),
    [
        (["ttft:100"], True),
        (["ttft:99"], False),
        (["ttft:100 itl:200"], True),
        (["ttft:100", "itl:150"], False),
        (["tpot:151,e2el:1000"], True),
        (["e2e:999"], False),
    ],
)
def test_limits(words: list[str], is_met: bool) -> None:
    assert meets(trace(0.1, 0.2, 0.4), parse_objective("--goodput", words)) is is_met


def test_a_request_that_failed_meets_no_limit() -> None:
    assert not meets(trace(failure="HTTP 500"), {"ttft": 1e9})


def test_a_request_of_one_token_has_no_gaps() -> None:
    assert meets(trace(0.1), {"itl": 1.0, "tpot": 1.0})


@pytest.mark.parametrize("word", ["ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:inf", "ttft:nan", "speed:1", "500"])
def test_invalid_limits_are_refused(word: str) -> None:
    with pytest.raises(SettingsError, match="--goodput"):
        parse_objective("--goodput", [word])


@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 3))
def test_token_ids_lie_in_the_vocabulary(length: int, vocab_size: int, seed: int) -> None:
    ids = draw_token_ids(length, vocab_size, random.Random(seed))
    assert len(ids) == length
    assert all(min(FIRST_ID, vocab_size - 1) <= token_id < vocab_size for token_id in ids)


def test_texts_have_as_many_words() -> None:
    assert len(draw_text(17, random.Random(0)).split()) == 17


@pytest.mark.parametrize(
    ("max_length", "ends"),
    [(2, [2]), (128, [128]), (129, [128, 129]), (1024, [128, 256, 512, 1024]), (600, [128, 256, 512, 600])],
)
def test_stretches_end_at_doublings(max_length: int, ends: list[int]) -> None:
    assert ends_of_stretches(max_length) == ends


def test_numbers_have_significant_digits() -> None:
    assert [milliseconds(value) for value in (0.1234, 12.34, 1234.5, None)] == ["0.12", "12.3", "1,234", "–"]
    assert [shown_rate(value) for value in (12.34, 12345.6, None)] == ["12.3", "12,346", "–"]
    assert number(7) == "7.0"
    assert pick({"a": None}, "a", "p50") is None
