"""The sampler against its oracle: which tokens a row may get, how often it gets each, and on what that depends."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from jaxtyping import Array
from roost.engine.core.errors import ParameterError
from roost.engine.core.output_constraint import mask_of_ids, words_of_mask
from roost.engine.core.request import Request
from roost.engine.core.sampling_limits import MAX_LOGPROBS, NO_CHOICE, NO_TOKEN, PENALTY_WINDOW
from roost.engine.core.sampling_params import SamplingParams, SamplingState
from roost.engine.platform import CPU_OPTIONS
from roost.engine.sampling.columns import sampling_columns
from roost.engine.sampling.draw import draw_from_candidates, invert
from roost.engine.sampling.logprobs import Logprobs, logprobs, score
from roost.engine.sampling.reference import reference_distribution
from roost.engine.sampling.sampler import Sampled, sample
from roost.engine.sampling.state import (
    TokenMemory,
    no_tokens,
    record_tokens,
    zero_sampling_state,
    zero_token_memory,
)

DRAWS = 2048
"""Rows of the tests that count: one distribution, as many seeds."""

ROWS, VOCAB = 4, 300
"""Of the tests that mix requests; the vocabulary is no multiple of the 128 lanes."""

PROMPT = 7
"""Length of every prompt here: the position of the first token that is sampled."""

FILTERS = {
    "temperature": st.floats(0.2, 2.0),
    "top_k": st.just(0) | st.integers(1, 100),
    "top_p": st.just(1.0) | st.floats(0.05, 0.999),
    "min_p": st.just(0.0) | st.floats(0.01, 1.0),
    "typical_p": st.just(1.0) | st.floats(0.05, 0.999),
}
"""What narrows a distribution; keyword arguments, as requests are built inside the tests."""

jitted = jax.jit(sample, compiler_options=CPU_OPTIONS)
inverted = jax.jit(invert, compiler_options=CPU_OPTIONS)


def state_of(requests: Sequence[SamplingParams]) -> SamplingState[Array]:
    """The requests' parameters as the device holds them."""
    columns = sampling_columns([Request("", (0,) * PROMPT, params) for params in requests], len(requests))
    columns["is_masked"] = np.array([params.static_mask is not None for params in requests])
    return SamplingState(**jax.tree.map(jnp.asarray, columns))


def memory_of(
    requests: Sequence[SamplingParams], vocab: int, prompt: Sequence[int] = (0,), generated: Sequence[int] = ()
) -> TokenMemory:
    """What the device holds of requests that all have this prompt and these tokens."""
    words, rows = words_of_mask(vocab), len(requests)
    everything = mask_of_ids(range(vocab), words)
    recent = np.array(no_tokens(rows))
    for place, token in enumerate(generated, PROMPT):
        recent[:, place % PENALTY_WINDOW] = token
    return TokenMemory(
        in_prompt=jnp.tile(mask_of_ids(prompt, words), (rows, 1)),
        allowed=jnp.stack([everything if p.static_mask is None else p.static_mask.mask(words) for p in requests]),
        recent=jnp.asarray(recent),
    )


def run(
    logits: np.ndarray,
    requests: Sequence[SamplingParams],
    num_tokens: int = 0,
    active: Sequence[bool] | None = None,
    memory: TokenMemory | None = None,
) -> Sampled:
    """The next token of each request after `num_tokens`."""
    positions = np.full(len(requests), PROMPT + num_tokens, np.int32)
    mask = np.array([True] * len(requests) if active is None else active)
    memory = memory_of(requests, logits.shape[1]) if memory is None else memory
    return jitted(logits.astype(np.float32), state_of(requests), memory, positions, mask)


def counts(
    logits: np.ndarray, params: SamplingParams, num_tokens: int = 0, memory: TokenMemory | None = None
) -> np.ndarray:
    """How often each token comes in `DRAWS` draws, each with its own seed; `memory` is of one row."""
    seeds = np.random.default_rng(params.seed).integers(0, 2**64, DRAWS, np.uint64)
    one = jax.tree.map(lambda x: np.repeat(np.asarray(x), DRAWS, axis=0), state_of([params]))
    state = replace(one, seed=np.stack([seeds & 0xFFFFFFFF, seeds >> 32], axis=1).astype(np.uint32))
    positions, active = np.full(DRAWS, PROMPT + num_tokens, np.int32), np.ones(DRAWS, np.bool)
    memory = memory_of([params], len(logits)) if memory is None else memory
    memories = jax.tree.map(lambda x: np.repeat(np.asarray(x), DRAWS, axis=0), memory)
    tokens = jitted(np.tile(logits.astype(np.float32), (DRAWS, 1)), state, memories, positions, active).tokens
    return np.bincount(np.asarray(tokens), minlength=len(logits))


def check_frequencies(counts: np.ndarray, expected: np.ndarray) -> None:
    """Pearson's test; rare tokens are pooled. The bound is six standard deviations out: never by chance."""
    assert not counts[expected == 0].any(), "a token that the request excludes"
    frequent = expected * DRAWS >= 10
    cells = [*zip(counts[frequent], expected[frequent] * DRAWS, strict=True)]
    cells.append((counts[~frequent].sum(), max(expected[~frequent].sum() * DRAWS, 1.0)))
    statistic = sum((n - mean) ** 2 / mean for n, mean in cells)
    assert statistic < len(cells) + 6 * np.sqrt(2 * len(cells)) + 10


def quantised(seed: int, vocab: int, scale: float) -> np.ndarray:
    """Logits on a coarse grid, so that some are equal."""
    return np.round(scale * np.random.default_rng(seed).normal(size=vocab) * 4) / 4


@pytest.mark.parametrize("vocab", [12, VOCAB])
@given(
    seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 0.5, 1.0, 3.0]), narrowing=st.fixed_dictionaries(FILTERS)
)
@settings(max_examples=40)
def test_tokens_come_as_often_as_the_reference_says(
    vocab: int, seed: int, scale: float, narrowing: dict[str, Any]
) -> None:
    """The support exactly, the frequencies within chance; but for thresholds so near a token that rounding decides."""
    logits, params = quantised(seed, vocab, scale), SamplingParams(seed=seed, **narrowing)
    expected = reference_distribution(logits, params)
    for nudge in (1 - 1e-5, 1 + 1e-5):
        nudged = {name: min(narrowing[name] * nudge, 1.0) for name in ("top_p", "min_p", "typical_p")}
        for temperature in (params.temperature, params.temperature * nudge):
            other = replace(params, **nudged, temperature=temperature)
            assume(np.array_equal(reference_distribution(logits, other) > 0, expected > 0))
    seen = counts(logits, params)
    check_frequencies(seen, expected)
    assert seen[expected * DRAWS > 50].all(), "a token that the request allows never came"


@pytest.mark.parametrize("vocab", [12, VOCAB])
@pytest.mark.parametrize(
    ("narrowing", "allowed"),
    [
        ({}, 12),
        ({"top_k": 3}, 3),
        ({"top_k": 4}, 5),
        ({"top_k": 1000}, 12),
        ({"top_p": 0.45}, 1),
        ({"top_p": 0.5}, 2),
        ({"top_p": 0.86}, 5),
        ({"min_p": 0.2}, 3),
        ({"min_p": 1.0}, 1),
        ({"top_k": 3, "top_p": 0.57}, 1),
        ({"top_p": 1e-9}, 1),
    ],
)
def test_which_tokens_are_allowed(vocab: int, narrowing: dict[str, Any], allowed: int) -> None:
    """Weights 8, 4, 2, 1, 1 and then seven of 1/8, anywhere in the vocabulary; ties stay or go together.

    They sum to 16.875, and top_p counts after top_k: of 14, where that leaves three.
    """
    logits = np.full(vocab, -np.inf)
    best = np.random.default_rng(1).permutation(vocab)[:12]
    logits[best] = np.log([8, 4, 2, 1, 1, *[1 / 8] * 7])
    seen = counts(logits, SamplingParams(**narrowing))
    assert set(np.flatnonzero(seen)) == set(best[:allowed])


@pytest.mark.parametrize("vocab", [12, VOCAB])
@pytest.mark.parametrize(
    ("narrowing", "places"),
    [
        ({"typical_p": 0.2}, [1]),
        ({"typical_p": 0.3}, [1, 2]),
        ({"typical_p": 0.5}, [0, 1, 2]),
        ({"typical_p": 0.85}, [0, 1, 2, 3, 4]),
        ({"typical_p": 0.96}, [*range(12)]),
        ({"typical_p": 0.2, "top_k": 3}, [1]),
        ({"typical_p": 0.8, "top_k": 3}, [0, 1]),
        ({"typical_p": 0.5, "min_p": 0.5}, [0]),
        ({"typical_p": 0.7, "min_p": 0.5}, [0, 1]),
    ],
)
def test_which_tokens_are_typical(vocab: int, narrowing: dict[str, Any], places: list[int]) -> None:
    """The weights of before, of which the best is not the nearest: the entropy is 1.54 nats, so that the distances are
    0.79 for weight 8, 0.10 for 4, 0.60 for 2, 1.29 for 1 and 3.37 for 1/8. Of 8 and 4 alone, 8 is.
    """
    logits = np.full(vocab, -np.inf)
    best = np.random.default_rng(1).permutation(vocab)[:12]
    logits[best] = np.log([8, 4, 2, 1, 1, *[1 / 8] * 7])
    seen = counts(logits, SamplingParams(**narrowing))
    assert set(np.flatnonzero(seen)) == set(best[places])


@given(
    seed=st.integers(0, 2**32),
    temperature=st.floats(1e-30, 1e-3) | st.floats(1e-3, 2.0),
    narrowing=st.fixed_dictionaries({"top_k": st.integers(0, 3), "top_p": st.just(1.0) | st.floats(1e-9, 0.999)}),
)
def test_the_best_token_is_always_allowed(seed: int, temperature: float, narrowing: dict[str, Any]) -> None:
    """It weighs exactly 1 at every temperature, so min_p = 1 leaves it, and those equal to it, and no other."""
    logits = np.random.default_rng(seed).normal(size=(ROWS, VOCAB)).astype(np.float32)
    requests = [SamplingParams(temperature=temperature, min_p=1.0, seed=i, **narrowing) for i in range(ROWS)]
    np.testing.assert_array_equal(run(logits, requests).tokens, logits.argmax(axis=-1))


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e-36])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = quantised(2, VOCAB, 3.0)
    logits[5] = logits.max() + 0.25
    assert counts(logits, SamplingParams(temperature=temperature))[5] == DRAWS


@pytest.mark.parametrize("token", [0, 127, 128, VOCAB - 1])
def test_one_token_that_holds_all_mass_always_comes(token: int) -> None:
    """At the ends of the vocabulary and of a lane, where inverting the running sum may slip."""
    logits = np.zeros(VOCAB)
    logits[token] = 1000.0
    assert counts(logits, SamplingParams())[token] == DRAWS


@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.02, 0.5, 1.0]))
def test_no_uniform_number_gives_a_token_of_weight_0(seed: int, share: float) -> None:
    """Neither 0, where such tokens come first, nor the last below 1, which rounding may put past all weights."""
    rng = np.random.default_rng(seed)
    weights = rng.random((ROWS, VOCAB), np.float32) ** 4 * (rng.random((ROWS, VOCAB)) < share)
    weights[:, [0, 127, 128, VOCAB - 1]] = 0.0
    weights[:, 5] = 0.5
    uniform = np.array([0.0, 2.0**-24, 0.5, 1 - 2.0**-24], np.float32)
    tokens = np.asarray(inverted(weights.astype(np.float32), uniform))
    assert (weights[np.arange(ROWS), tokens] > 0).all()
    assert tokens[0] == np.flatnonzero(weights[0])[0]


@pytest.mark.parametrize("top_k", [63, 64, 65])
def test_candidates_end_at_no_token_of_note(top_k: int) -> None:
    """64 tokens are looked at first: fewer are drawn from those, 64 and more from the whole vocabulary."""
    logits = np.random.default_rng(6).permutation(VOCAB) * 1e-3
    params = SamplingParams(top_k=top_k)
    check_frequencies(counts(logits, params), reference_distribution(logits, params))
    _, found = jax.jit(draw_from_candidates)(logits[None].astype(np.float32), state_of([params]), np.float32([0.5]))
    assert bool(found[0]) == (top_k < 64)


def test_a_vocabulary_is_never_sorted() -> None:
    def inputs() -> Any:
        state = (zero_sampling_state(ROWS), zero_token_memory(ROWS, 256_000))
        return *state, jnp.zeros(ROWS, jnp.int32), jnp.zeros(ROWS, jnp.bool)

    shapes = jax.eval_shape(inputs)
    lowered = jax.jit(sample).lower(jax.ShapeDtypeStruct((ROWS, 256_000), jnp.float32), *shapes).as_text()
    assert "top_k" in lowered
    assert "stablehlo.sort" not in lowered


def test_equal_logits_give_every_token_the_same_chance() -> None:
    seen = counts(np.full(VOCAB, 3.5), SamplingParams(top_k=1, top_p=0.01, min_p=1.0))
    check_frequencies(seen, np.full(VOCAB, 1 / VOCAB))


def test_stop_ids_do_not_come_before_min_tokens() -> None:
    """And come right after; here they hold nearly all the mass."""
    logits = np.zeros(VOCAB)
    logits[[1, 107]] = 10.0
    params = SamplingParams(min_tokens=3, end_token_ids=(1,), stop_token_ids=(107,))
    for num_tokens in (0, 2, 3):
        seen = counts(logits, params, num_tokens)
        check_frequencies(seen, reference_distribution(logits, params, num_tokens))
        assert seen[[1, 107]].all() == (num_tokens >= 3)
    greedy = [replace(params, temperature=0.0)] * ROWS
    tokens = [int(run(np.tile(logits, (ROWS, 1)), greedy, n).tokens[0]) for n in (0, 2, 3)]
    assert tokens == [0, 0, 1]


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


@given(
    seed=st.integers(0, 2**32),
    rules=RULES,
    prompt=st.lists(st.integers(0, VOCAB - 1), max_size=9),
    generated=st.lists(st.integers(0, 19), max_size=30),
)
@settings(max_examples=25)
def test_masks_biases_and_penalties_are_those_of_the_reference(
    seed: int, rules: dict[str, Any], prompt: list[int], generated: list[int]
) -> None:
    """The best token under the rules, and how often each comes."""
    logits = np.random.default_rng(seed).normal(size=VOCAB) * 2
    params = SamplingParams(seed=seed, stop_token_ids=(3, 5), **rules)
    memory = memory_of([params], VOCAB, prompt, generated)
    expected = reference_distribution(logits, params, len(generated), prompt, generated)
    greedy = run(logits[None], [replace(params, temperature=0.0)], len(generated), memory=memory).tokens[0]
    assert expected[greedy] == pytest.approx(expected.max(), rel=1e-4)
    check_frequencies(counts(logits, params, len(generated), memory), expected)


noted = jax.jit(record_tokens)


def test_penalties_look_back_so_far_and_no_farther() -> None:
    """The device forgets the oldest token as it notes the newest; of rows that are not penalized it notes none."""
    recent = no_tokens(2)
    for position in range(PENALTY_WINDOW + 2):
        tokens = np.array([position % 7, 9], np.int32)
        recent = noted(recent, tokens, np.full(2, position, np.int32), np.array([True, False]))
    kept = [position % 7 for position in range(2, PENALTY_WINDOW + 2)]
    assert np.bincount(np.asarray(recent[0])).tolist() == np.bincount(kept).tolist()
    assert (recent[1] == -1).all()


def test_named_tokens_have_their_logprobs() -> None:
    logits = quantised(8, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB)
    params = SamplingParams(logprobs=0, logprob_token_ids=(7, 0, VOCAB - 1), frequency_penalty=1.0)
    named = run(logits, [params] * ROWS).logprobs.named[:, :3]
    np.testing.assert_allclose(named, log_softmax(logits)[:, [7, 0, VOCAB - 1]], rtol=1e-5, atol=1e-5)


REQUESTS = st.lists(
    st.fixed_dictionaries(
        FILTERS
        | {
            "temperature": st.just(0.0) | st.floats(0.2, 2.0),
            "seed": st.integers(0, 2**64 - 1),
            "min_tokens": st.integers(0, 2),
            "stop_token_ids": st.just(()) | st.tuples(st.integers(0, VOCAB - 1)),
            "frequency_penalty": st.sampled_from([0.0, 0.5]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "logit_bias": st.just(()) | st.tuples(st.tuples(st.integers(0, VOCAB - 1), st.floats(-5, 5))),
            "allowed_token_ids": st.none() | st.just(tuple(range(0, VOCAB, 3))),
            "logprobs": st.none() | st.integers(0, 5),
        }
    ),
    min_size=ROWS,
    max_size=ROWS,
)


@given(seed=st.integers(0, 2**32), fields=REQUESTS, order=st.permutations(range(ROWS)), num_tokens=st.integers(0, 2))
def test_a_row_does_not_depend_on_the_others(
    seed: int, fields: list[dict[str, Any]], order: list[int], num_tokens: int
) -> None:
    """The same bits in any order, and beside other requests or idle rows; so the same seed gives the same tokens."""
    logits, requests = quantised(seed, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB), [SamplingParams(**f) for f in fields]
    together = run(logits, requests, num_tokens)
    turned = run(logits[order], [requests[i] for i in order], num_tokens)
    np.testing.assert_array_equal(turned.tokens, together.tokens[jnp.array(order)])
    others = [requests[0], *[SamplingParams(temperature=0.0)] * (ROWS - 1)]
    alone = run(np.vstack([logits[:1], -logits[1:]]), others, num_tokens, [True] + [False] * (ROWS - 1))
    assert alone.tokens[0] == together.tokens[0]
    if requests[0].logprobs is not None:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), alone.logprobs, together.logprobs)


def test_the_draw_depends_on_position_and_on_all_of_the_seed() -> None:
    """64 tokens of 300 that are equally likely: alike only by chance."""
    requests = [SamplingParams(seed=seed) for seed in (0, 1, 1 << 32, 2**64 - 1)]
    draws = np.array([run(np.zeros((ROWS, VOCAB)), requests, num_tokens).tokens for num_tokens in range(64)])
    for row in range(ROWS):
        assert len(set(draws[:, row].tolist())) > 40
        for other in range(row):
            assert (draws[:, row] == draws[:, other]).sum() < 8


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_greedy_takes_the_lowest_of_the_best_ids(seed: int) -> None:
    logits = np.random.default_rng(seed).integers(0, 4, (ROWS, VOCAB)).astype(np.float32)
    tokens = run(logits, [SamplingParams(temperature=0.0)] * ROWS).tokens
    np.testing.assert_array_equal(tokens, [int(np.flatnonzero(row == row.max())[0]) for row in logits])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("vocab", [12, VOCAB])
def test_logprobs_are_the_models_own(vocab: int) -> None:
    """Whatever the request makes of the logits; alternatives stand best first, ties by id, and as many as there are."""
    logits = quantised(3, ROWS * vocab, 2.0).reshape(ROWS, vocab)
    banned = int(logits[0].argmax())
    params = SamplingParams(temperature=0.5, top_k=3, min_tokens=1, stop_token_ids=(banned,), logprobs=MAX_LOGPROBS)
    sampled, expected = run(logits, [params] * ROWS), log_softmax(logits)
    tokens = np.asarray(sampled.tokens)
    assert tokens[0] != banned
    np.testing.assert_allclose(sampled.logprobs.chosen, expected[np.arange(ROWS), tokens], rtol=1e-5, atol=1e-5)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :MAX_LOGPROBS]
    np.testing.assert_array_equal(sampled.logprobs.top_ids, best)
    np.testing.assert_allclose(sampled.logprobs.top, np.take_along_axis(expected, best, -1), rtol=1e-5, atol=1e-5)


def test_logprobs_nobody_asked_for_are_zeros() -> None:
    """Asked for by one row, they are made for all; by an idle one, for none."""
    logits = quantised(4, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB)
    requests = [SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, logprobs=1)] * 2
    assert np.asarray(run(logits, requests).logprobs.top).all()
    idle = run(logits, requests, active=[True, False] * 2).logprobs
    assert not any(np.asarray(x).any() for x in (idle.chosen, idle.top_ids, idle.top))


def test_scores_of_a_chunk_are_the_logprobs_of_its_targets() -> None:
    """In blocks, so that the logits of a long chunk never stand in memory at once."""
    rng = np.random.default_rng(5)
    hidden, table = rng.normal(size=(12, 8)).astype(np.float32), rng.normal(size=(8, VOCAB)).astype(np.float32)
    targets = rng.integers(0, VOCAB, 12, np.int32)
    blocks: list[tuple[int, ...]] = []

    def judge(x: jax.Array, targets: jax.Array) -> Logprobs:
        blocks.append(x.shape)
        return logprobs(x @ table, targets, jnp.zeros((4, 0), jnp.int32))

    scored = score(judge, jnp.asarray(hidden), jnp.asarray(targets), 4)
    assert set(blocks) == {(4, 8)}
    expected = logprobs(jnp.asarray(hidden @ table), jnp.asarray(targets), jnp.zeros((12, 0), jnp.int32))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), scored, expected)
    np.testing.assert_allclose(scored.chosen, log_softmax(hidden @ table)[np.arange(12), targets], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "narrowing",
    [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 1.0}, {"typical_p": 0.5}, {"logprobs": 3}],
)
@pytest.mark.parametrize("vocab", [12, VOCAB])
def test_a_row_in_which_nothing_is_allowed_says_so(vocab: int, narrowing: dict[str, Any]) -> None:
    """Every allowed id is a stop id, and none may come yet, with biases and penalties on them. The other rows go on."""
    banned = tuple((i,) for i in range(12, vocab))
    empty = SamplingParams(
        min_tokens=1,
        stop_token_ids=tuple(range(12)),
        bad_words=banned,
        logit_bias=((3, 1e30), (4, -1e30)),
        repetition_penalty=1e-6,
        **narrowing,
    )
    logits = quantised(9, 2 * vocab, 2.0).reshape(2, vocab)
    other = SamplingParams(seed=5, **narrowing)
    tokens = run(logits, [empty, other]).tokens
    assert tokens[0] == NO_CHOICE
    assert tokens[1] == run(logits, [other, other]).tokens[1]
    assert not reference_distribution(logits[0], empty).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 127, VOCAB - 1])
def test_logits_that_are_not_numbers_give_no_token(temperature: float, value: float, place: int) -> None:
    logits = quantised(10, 2 * VOCAB, 2.0).reshape(2, VOCAB)
    requests = [SamplingParams(temperature=temperature, top_k=k, seed=k) for k in (0, 5)]
    clean = run(logits, requests).tokens
    logits[0, place] = value
    tokens = run(logits, requests).tokens
    assert (tokens[0], tokens[1]) == (NO_TOKEN, clean[1])


SIZES = st.sampled_from([0.0, 1e-45, -1e-45, 1e-38, 1.0, -1.0, 1e30, -1e30])
EXTREMES = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-320, 1e-45, 1e-38, 1.2e-38, 1e-30, 1.0, 1e30]),
        "top_k": st.sampled_from([0, 1, 64, 2**31 - 1]),
        "top_p": st.sampled_from([1e-320, 1e-45, 1e-38, 0.5, 1 - 1e-9, 1.0]),
        "min_p": st.sampled_from([0.0, 1e-45, 1e-38, 1 - 1e-9, 1.0]),
        "typical_p": st.sampled_from([1e-6, 0.5, 1 - 1e-9, 1.0]),
        "frequency_penalty": SIZES,
        "presence_penalty": SIZES,
        "repetition_penalty": st.sampled_from([1e-6, 1.0, 1e6]),
        "logit_bias": st.dictionaries(st.integers(0, 40), SIZES, max_size=9).map(lambda pairs: tuple(pairs.items())),
        "allowed_token_ids": st.none() | st.sets(st.integers(0, 40), min_size=1, max_size=6).map(tuple),
        "stop_token_ids": st.sets(st.integers(0, 40), max_size=4).map(tuple),
        "min_tokens": st.sampled_from([0, 99]),
        "seed": st.integers(0, 2**64 - 1),
    }
)


@given(
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.0, 1e-38, 1.0, 30.0, 1e6]),
    fields=EXTREMES,
    generated=st.lists(st.integers(0, 40), max_size=30),
)
@settings(max_examples=150)
def test_extreme_values_give_an_allowed_token(
    seed: int, scale: float, fields: dict[str, Any], generated: list[int]
) -> None:
    """Of a request whose values are accepted; what it refuses is in `test_request`."""
    try:
        params = SamplingParams(**fields)
    except ParameterError:
        assume(False)
    memory = memory_of([params] * ROWS, VOCAB, generated[:5], generated)
    logits = np.random.default_rng(seed).normal(size=(ROWS, VOCAB)) * scale
    requests = [params.with_seed((params.seed + row) % 2**64) for row in range(ROWS)]
    for token in run(logits, requests, len(generated), memory=memory).tokens.tolist():
        assert 0 <= token < VOCAB
        assert params.allowed_token_ids is None or token in params.allowed_token_ids
        assert not params.min_tokens or token not in params.stop_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("field", ["repetition_penalty", "typical_p"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40])
def test_values_that_no_request_may_have_still_keep_to_the_mask(field: str, value: float, temperature: float) -> None:
    """Below the range of float32, where -inf * 0 is NaN."""
    params = SamplingParams(temperature=temperature, allowed_token_ids=(5, 200), repetition_penalty=1.5)
    state = replace(state_of([params] * ROWS), **{field: np.full(ROWS, value, np.float32)})
    logits = np.abs(quantised(11, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB)).astype(np.float32)
    memory = memory_of([params] * ROWS, VOCAB, range(VOCAB))
    tokens = jitted(logits, state, memory, np.full(ROWS, PROMPT, np.int32), np.ones(ROWS, np.bool)).tokens
    assert set(tokens.tolist()) <= {5, 200, NO_TOKEN}
