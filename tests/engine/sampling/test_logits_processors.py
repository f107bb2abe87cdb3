"""Processors and truncation, against the reference: which tokens may come, and how often."""

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from reference_sampling import reference_distribution
from roost.engine.sampling.sampler import (
    SamplingRows,
    draw_from_candidates,
    no_tokens,
    record_tokens,
    sample,
    zero_sampling_state,
    zero_token_memory,
)
from roost.engine.types.sampling_params import NO_TOKEN, PENALTY_WINDOW, SamplingParams
from sampler_cases import (
    DRAWS,
    FILTERS,
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
from sweeps import examples, full, swept

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
    check_processed(seed, rules, prompt, generated, jitted)


@processed_logits
@few_examples
def test_masks_biases_and_penalties_of_the_tpu_kernel_are_those_of_the_reference(
    seed: int, rules: dict[str, Any], prompt: list[int], generated: list[int]
) -> None:
    check_processed(seed, rules, prompt, generated, on_tpu)


def check_processed(
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
    rows: Any = (np.full(ROWS, PROMPT, np.int32), np.ones(ROWS, np.bool))
    tokens = sampler(logits, SamplingRows(state, memory, *rows)).tokens
    assert set(tokens.tolist()) <= {5, 200, NO_TOKEN}


filtered_logits = given(
    seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 0.5, 1.0, 3.0]), narrowing=st.fixed_dictionaries(FILTERS)
)


@pytest.mark.parametrize("vocab", [*swept(12), VOCAB])
@filtered_logits
@examples(5, sweep=40)
def test_tokens_come_as_often_as_the_reference_says(
    vocab: int, seed: int, scale: float, narrowing: dict[str, Any]
) -> None:
    check_truncated(vocab, seed, scale, narrowing, jitted)


@pytest.mark.parametrize("vocab", [*swept(12), VOCAB])
@filtered_logits
@few_examples
def test_tokens_of_the_tpu_kernel_come_as_often_as_the_reference_says(
    vocab: int, seed: int, scale: float, narrowing: dict[str, Any]
) -> None:
    check_truncated(vocab, seed, scale, narrowing, on_tpu)


def check_truncated(vocab: int, seed: int, scale: float, narrowing: dict[str, Any], sampler: Sampler) -> None:
    """The support exactly, the frequencies within chance; but for thresholds so near a token that rounding decides."""
    logits, params = quantised(seed, vocab, scale), SamplingParams(seed=seed, **narrowing)
    expected = reference_distribution(logits, params)
    for nudge in (1 - 1e-5, 1 + 1e-5):
        nudged = {name: min(narrowing[name] * nudge, 1.0) for name in ("top_p", "min_p", "typical_p")}
        for temperature in (params.temperature, params.temperature * nudge):
            other = replace(params, **nudged, temperature=temperature)
            assume(np.array_equal(reference_distribution(logits, other) > 0, expected > 0))
    seen = counts(logits, params, sampler=sampler)
    check_frequencies(seen, expected)
    assert seen[expected * DRAWS > 50].all(), "a token that the request allows never came"


@every_sampler
@pytest.mark.parametrize("vocab", [*swept(12), VOCAB])
@pytest.mark.parametrize(
    ("narrowing", "allowed"),
    [
        ({"top_k": 3}, 3),
        ({"top_k": 4}, 5),
        ({"top_k": 1000}, 12),
        ({"top_p": 0.5}, 2),
        ({"top_p": 0.86}, 5),
        ({"min_p": 0.2}, 3),
        ({"top_k": 3, "top_p": 0.57}, 1),
        *full(({}, 12), ({"top_p": 0.45}, 1), ({"min_p": 1.0}, 1), ({"top_p": 1e-9}, 1)),
    ],
)
def test_which_tokens_are_allowed(vocab: int, narrowing: dict[str, Any], allowed: int, sampler: Sampler) -> None:
    """Weights 8, 4, 2, 1, 1 and then seven of 1/8, anywhere in the vocabulary; ties stay or go together.

    They sum to 16.875, and top_p counts after top_k: of 14, where that leaves three.
    """
    logits = np.full(vocab, -np.inf)
    best = np.random.default_rng(1).permutation(vocab)[:12]
    logits[best] = np.log([8, 4, 2, 1, 1, *[1 / 8] * 7])
    seen = counts(logits, SamplingParams(**narrowing), sampler=sampler)
    assert set(np.flatnonzero(seen)) == set(best[:allowed])


@every_sampler
@pytest.mark.parametrize("vocab", [*swept(12), VOCAB])
@pytest.mark.parametrize(
    ("narrowing", "places"),
    [
        ({"typical_p": 0.3}, [1, 2]),
        ({"typical_p": 0.5}, [0, 1, 2]),
        ({"typical_p": 0.96}, [*range(12)]),
        ({"typical_p": 0.8, "top_k": 3}, [0, 1]),
        ({"typical_p": 0.5, "min_p": 0.5}, [0]),
        *full(({"typical_p": 0.2}, [1]), ({"typical_p": 0.85}, [0, 1, 2, 3, 4])),
        *full(({"typical_p": 0.2, "top_k": 3}, [1]), ({"typical_p": 0.7, "min_p": 0.5}, [0, 1])),
    ],
)
def test_which_tokens_are_typical(vocab: int, narrowing: dict[str, Any], places: list[int], sampler: Sampler) -> None:
    """The weights of before, of which the best is not the nearest: the entropy is 1.54 nats, so that the distances are
    0.79 for weight 8, 0.10 for 4, 0.60 for 2, 1.29 for 1 and 3.37 for 1/8. Of 8 and 4 alone, 8 is.
    """
    logits = np.full(vocab, -np.inf)
    best = np.random.default_rng(1).permutation(vocab)[:12]
    logits[best] = np.log([8, 4, 2, 1, 1, *[1 / 8] * 7])
    seen = counts(logits, SamplingParams(**narrowing), sampler=sampler)
    assert set(np.flatnonzero(seen)) == set(best[places])


@every_sampler
@given(
    seed=st.integers(0, 2**32),
    temperature=st.floats(1e-30, 1e-3) | st.floats(1e-3, 2.0),
    narrowing=st.fixed_dictionaries({"top_k": st.integers(0, 3), "top_p": st.just(1.0) | st.floats(1e-9, 0.999)}),
)
@examples(15, sweep=50)
def test_the_best_token_is_always_allowed(
    seed: int, temperature: float, narrowing: dict[str, Any], sampler: Sampler
) -> None:
    """It weighs exactly 1 at every temperature, so min_p = 1 leaves it, and those equal to it, and no other."""
    logits = np.random.default_rng(seed).normal(size=(ROWS, VOCAB)).astype(np.float32)
    requests = [SamplingParams(temperature=temperature, min_p=1.0, seed=i, **narrowing) for i in range(ROWS)]
    np.testing.assert_array_equal(run(logits, requests, sampler=sampler).tokens, logits.argmax(axis=-1))


@every_sampler
@pytest.mark.parametrize("temperature", [1e-3, *full(1e-9), 1e-36])
def test_a_tiny_temperature_is_greedy(temperature: float, sampler: Sampler) -> None:
    logits = quantised(2, VOCAB, 3.0)
    logits[5] = logits.max() + 0.25
    assert counts(logits, SamplingParams(temperature=temperature), sampler=sampler)[5] == DRAWS


@pytest.mark.parametrize("top_k", [63, 64, 65])
def test_candidates_end_at_no_token_of_note(top_k: int) -> None:
    """64 tokens are looked at first: fewer are drawn from those, 64 and more from the whole vocabulary."""
    logits = np.random.default_rng(6).permutation(VOCAB) * 1e-3
    params = SamplingParams(top_k=top_k)
    check_frequencies(counts(logits, params), reference_distribution(logits, params))
    _, found = jax.jit(draw_from_candidates)(
        logits[None].astype(np.float32), state_of([params]), np.array([0.5], np.float32)
    )
    assert bool(found[0]) == (top_k < 64)


def test_a_vocabulary_is_never_sorted() -> None:
    def inputs() -> Any:
        state = (zero_sampling_state(ROWS), zero_token_memory(ROWS, 256_000))
        return SamplingRows(*state, jnp.zeros(ROWS, jnp.int32), jnp.zeros(ROWS, jnp.bool))

    shapes = jax.eval_shape(inputs)
    lowered = jax.jit(sample).lower(jax.ShapeDtypeStruct((ROWS, 256_000), jnp.float32), shapes).as_text()
    assert "top_k" in lowered
    assert "stablehlo.sort" not in lowered


@every_sampler
def test_equal_logits_give_every_token_the_same_chance(sampler: Sampler) -> None:
    seen = counts(np.full(VOCAB, 3.5), SamplingParams(top_k=1, top_p=0.01, min_p=1.0), sampler=sampler)
    check_frequencies(seen, np.full(VOCAB, 1 / VOCAB))
