"""Biases, penalties and token masks against the reference."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from roost.engine.sampling.logits_processors import no_tokens, record_tokens
from roost.engine.sampling.reference import reference_distribution
from roost.engine.types.sampling_params import NO_TOKEN, PENALTY_WINDOW, SamplingParams
from sampler_cases import (
    PROMPT,
    ROWS,
    VOCAB,
    Sampler,
    check_frequencies,
    counts,
    every_sampler,
    few_examples,
    jitted,
    memory_of,
    on_tpu,
    quantised,
    run,
    state_of,
)
from sweeps import examples

RULES = st.fixed_dictionaries(
    {
        "frequency_penalty": st.just(0.0) | st.floats(-2, 2),
        "presence_penalty": st.just(0.0) | st.floats(-2, 2),
        "repetition_penalty": st.just(1.0) | st.floats(0.5, 2),
        "logit_bias": st.lists(st.tuples(st.integers(0, VOCAB - 1), st.floats(-5, 5)), max_size=4).map(
            lambda pairs: tuple(dict(pairs).items())
        ),
        "allowed_token_ids": st.none() | st.sets(st.integers(0, VOCAB - 1), min_size=20, max_size=90).map(tuple),
        "bad_words": st.lists(st.tuples(st.integers(0, VOCAB - 1)), max_size=9).map(tuple),
        "min_tokens": st.sampled_from([0, 4]),
    }
)


noted = jax.jit(record_tokens)


@every_sampler
def test_stop_ids_do_not_come_before_min_tokens(sampler: Sampler) -> None:
    """And come right after; here they hold nearly all the mass."""
    logits = np.zeros(VOCAB)
    logits[[1, 107]] = 10.0
    params = SamplingParams(min_tokens=3, end_token_ids=(1,), stop_token_ids=(107,))
    for num_tokens in (0, 2, 3):
        seen = counts(logits, params, num_tokens, sampler=sampler)
        check_frequencies(seen, reference_distribution(logits, params, num_tokens))
        assert seen[[1, 107]].all() == (num_tokens >= 3)
    greedy = [replace(params, temperature=0.0)] * ROWS
    tokens = [int(run(np.tile(logits, (ROWS, 1)), greedy, n, sampler=sampler).tokens[0]) for n in (0, 2, 3)]
    assert tokens == [0, 0, 1]


processed_logits = given(
    seed=st.integers(0, 2**32),
    rules=RULES,
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=9),
    generated=st.lists(st.integers(0, 19), max_size=30),
)


@processed_logits
@examples(8, sweep=25)
def test_masks_biases_and_penalties_are_those_of_the_reference(
    seed: int, rules: dict[str, Any], prompt: list[int], generated: list[int]
) -> None:
    check_against_reference(seed, rules, prompt, generated, jitted)


@processed_logits
@few_examples
def test_masks_biases_and_penalties_of_the_tpu_kernel_are_those_of_the_reference(
    seed: int, rules: dict[str, Any], prompt: list[int], generated: list[int]
) -> None:
    check_against_reference(seed, rules, prompt, generated, on_tpu)


def check_against_reference(
    seed: int, rules: dict[str, Any], prompt: list[int], generated: list[int], sampler: Sampler
) -> None:
    """The best token under the rules, and how often each comes."""
    logits = np.random.default_rng(seed).normal(size=VOCAB) * 2
    params = SamplingParams(seed=seed, stop_token_ids=(3, 5), **rules)
    memory = memory_of([params], VOCAB, prompt, generated)
    expected = reference_distribution(logits, params, len(generated), prompt, generated)
    memories = jax.tree.map(lambda x: np.repeat(x, ROWS, axis=0), memory)
    best, several = [replace(params, temperature=0.0)] * ROWS, np.tile(logits, (ROWS, 1))
    greedy = run(several, best, len(generated), memory=memories, sampler=sampler).tokens[0]
    assert expected[greedy] == pytest.approx(expected.max(), rel=1e-4)
    check_frequencies(counts(logits, params, len(generated), memory, sampler=sampler), expected)


def test_penalties_look_back_so_far_and_no_farther() -> None:
    """The device forgets the oldest token as it notes the newest; of rows that are not penalized it notes none."""
    recent = no_tokens(2)
    for position in range(PENALTY_WINDOW + 2):
        tokens = np.array([position % 7, 9], np.int32)
        recent = noted(recent, tokens, np.full(2, position, np.int32), np.array([True, False]))
    kept = [position % 7 for position in range(2, PENALTY_WINDOW + 2)]
    assert np.bincount(np.asarray(recent[0])).tolist() == np.bincount(kept).tolist()
    assert (recent[1] == -1).all()


@every_sampler
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("field", ["repetition_penalty", "typical_p"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40])
def test_values_that_no_request_may_have_still_keep_to_the_mask(
    field: str, value: float, temperature: float, sampler: Sampler
) -> None:
    """Below the range of float32, where -inf * 0 is NaN."""
    params = SamplingParams(temperature=temperature, allowed_token_ids=(5, 200), repetition_penalty=1.5)
    changed: dict[str, Any] = {field: np.full(ROWS, value, np.float32)}
    state = replace(state_of([params] * ROWS), **changed)
    logits = np.abs(quantised(11, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB)).astype(np.float32)
    memory = memory_of([params] * ROWS, VOCAB, range(VOCAB))
    tokens = sampler(logits, state, memory, np.full(ROWS, PROMPT, np.int32), np.ones(ROWS, np.bool)).tokens
    assert set(tokens.tolist()) <= {5, 200, NO_TOKEN}
