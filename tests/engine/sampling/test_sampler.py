"""The sampler as a whole: rows are independent, what the draw depends on, and log-probabilities."""

from functools import partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from reference_sampling import reference_distribution
from roost.engine.devices.platform import CPU_OPTIONS
from roost.engine.sampling.sampler import Logprobs, block_size, invert, logprobs, sample, score
from roost.engine.types.errors import ParameterError
from roost.engine.types.sampling_params import MAX_LOGPROBS, NO_CHOICE, NO_TOKEN, SamplingParams
from roost.kernels import Backend, Kernel
from roost.kernels.sampling import NUMBERS, pallas_tpu, top_k_by_blocks
from roost.kernels.sampling.pallas_tpu import takes_fields
from sampler_cases import (
    DRAWS,
    FILTERS,
    ROWS,
    VOCAB,
    Sampler,
    counts,
    every_sampler,
    log_softmax,
    memory_of,
    quantised,
    run,
)
from sweeps import examples, swept

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


@every_sampler
@given(seed=st.integers(0, 2**32), fields=REQUESTS, order=st.permutations(range(ROWS)), num_tokens=st.integers(0, 2))
@examples(12, sweep=50)
def test_a_row_does_not_depend_on_the_others(
    seed: int, fields: list[dict[str, Any]], order: list[int], num_tokens: int, sampler: Sampler
) -> None:
    """The same bits in any order, and beside other requests or idle rows; so the same seed gives the same tokens."""
    logits, requests = quantised(seed, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB), [SamplingParams(**f) for f in fields]
    together = run(logits, requests, num_tokens, sampler=sampler)
    turned = run(logits[order], [requests[i] for i in order], num_tokens, sampler=sampler)
    np.testing.assert_array_equal(turned.tokens, np.asarray(together.tokens)[order])
    others = [requests[0], *[SamplingParams(temperature=0.0)] * (ROWS - 1)]
    alone = run(
        np.vstack([logits[:1], -logits[1:]]), others, num_tokens, [True] + [False] * (ROWS - 1), sampler=sampler
    )
    assert alone.tokens[0] == together.tokens[0]
    if requests[0].logprobs is not None:
        logprobs = jax.tree.map(np.asarray, (alone.logprobs, together.logprobs))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), *logprobs)


@given(seed=st.integers(0, 2**32))
@examples(8, sweep=20)
def test_greedy_takes_the_lowest_of_the_best_ids(seed: int) -> None:
    logits = np.random.default_rng(seed).integers(0, 4, (ROWS, VOCAB)).astype(np.float32)
    tokens = run(logits, [SamplingParams(temperature=0.0)] * ROWS).tokens
    np.testing.assert_array_equal(tokens, [int(np.flatnonzero(row == row.max())[0]) for row in logits])


def test_blocks_of_rows_and_of_candidates_give_the_same_tokens() -> None:
    """As on GPUs: drawn from the candidates, from the vocabulary or greedy, with ties, masks and log-probabilities."""
    vocab = 6000
    narrowings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"top_k": 40},
        {"top_p": 0.9},
        {"min_p": 0.2, "top_p": 0.5},
        {"typical_p": 0.5},
        {"allowed_token_ids": tuple(range(0, vocab, 700)), "top_k": 40},
    ]
    requests = [SamplingParams(seed=seed, logprobs=3, **fields) for seed, fields in enumerate(narrowings)]
    logits = quantised(3, len(requests) * vocab, 2.0).reshape(-1, vocab)
    rows = 4  # the second block of rows overlaps the first
    backend = Backend("blocks", (Kernel("top_k", (), top_k_by_blocks),), sampled_rows=rows)
    by_blocks = jax.jit(partial(sample, backend=backend), compiler_options=CPU_OPTIONS)
    for num_tokens in range(8):
        expected = run(logits, requests, num_tokens)
        jax.tree.map(np.testing.assert_array_equal, run(logits, requests, num_tokens, sampler=by_blocks), expected)


@every_sampler
@pytest.mark.parametrize(
    "narrowing",
    [{"temperature": 0.0}, {}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 1.0}, {"typical_p": 0.5}, {"logprobs": 3}],
)
@pytest.mark.parametrize("vocab", [*swept(12), VOCAB])
def test_a_row_in_which_nothing_is_allowed_says_so(vocab: int, narrowing: dict[str, Any], sampler: Sampler) -> None:
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
    logits = quantised(9, ROWS * vocab, 2.0).reshape(ROWS, vocab)
    other = SamplingParams(seed=5, **narrowing)
    tokens = run(logits, [empty, *[other] * (ROWS - 1)], sampler=sampler).tokens
    assert tokens[0] == NO_CHOICE
    np.testing.assert_array_equal(tokens[1:], run(logits, [other] * ROWS, sampler=sampler).tokens[1:])
    assert not reference_distribution(logits[0], empty).any()


@every_sampler
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 127, VOCAB - 1])
def test_logits_that_are_not_numbers_give_no_token(
    temperature: float, value: float, place: int, sampler: Sampler
) -> None:
    logits = quantised(10, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB)
    requests = [SamplingParams(temperature=temperature, top_k=k, seed=k) for k in (0, 5, 0, 5)]
    clean = run(logits, requests, sampler=sampler).tokens
    logits[0, place] = value
    tokens = run(logits, requests, sampler=sampler).tokens
    assert tokens[0] == NO_TOKEN
    np.testing.assert_array_equal(tokens[1:], clean[1:])


@every_sampler
@given(
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.0, 1e-38, 1.0, 30.0, 1e6]),
    fields=EXTREMES,
    generated=st.lists(st.integers(0, 40), max_size=30),
)
@examples(40, sweep=150)
def test_extreme_values_give_an_allowed_token(
    seed: int, scale: float, fields: dict[str, Any], generated: list[int], sampler: Sampler
) -> None:
    """Values that `SamplingParams` accepts; `test_sampling_params` has those that it refuses."""
    try:
        params = SamplingParams(**fields)
    except ParameterError:
        assume(False)
    memory = memory_of([params] * ROWS, VOCAB, generated[:5], generated)
    logits = np.random.default_rng(seed).normal(size=(ROWS, VOCAB)) * scale
    requests = [params.with_seed((params.seed + row) % 2**64) for row in range(ROWS)]
    for token in run(logits, requests, len(generated), memory=memory, sampler=sampler).tokens.tolist():
        assert 0 <= token < VOCAB
        assert params.allowed_token_ids is None or token in params.allowed_token_ids
        assert not params.min_tokens or token not in params.stop_ids


def test_xla_samples_while_the_kernel_does_not_read_every_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new sampling field works on TPUs before their kernel knows it."""

    class KernelCalledError(Exception):
        pass

    def kernel(*arguments: Any) -> Any:
        raise KernelCalledError

    backend = Backend("tpu", (Kernel("sample", ("sample",), kernel, takes_fields),))
    traced = partial(jax.eval_shape, partial(sample, backend=backend))
    with pytest.raises(KernelCalledError):
        run(np.zeros((1, VOCAB)), [SamplingParams()], sampler=traced)
    monkeypatch.setattr(pallas_tpu, "NUMBERS", NUMBERS - {"min_p"})
    assert run(np.zeros((1, VOCAB)), [SamplingParams()], sampler=traced).tokens.shape == (1,)


inverted = jax.jit(invert, compiler_options=CPU_OPTIONS)


@every_sampler
@pytest.mark.parametrize("token", [0, 127, 128, VOCAB - 1])
def test_one_token_that_holds_all_mass_always_comes(token: int, sampler: Sampler) -> None:
    """At the ends of the vocabulary and of a lane, where inverting the running sum may slip."""
    logits = np.zeros(VOCAB)
    logits[token] = 1000.0
    assert counts(logits, SamplingParams(), sampler=sampler)[token] == DRAWS


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


@every_sampler
def test_the_draw_depends_on_position_and_on_all_of_the_seed(sampler: Sampler) -> None:
    """64 tokens of 300 that are equally likely: alike only by chance."""
    requests = [SamplingParams(seed=seed) for seed in (0, 1, 1 << 32, 2**64 - 1)]
    draws = np.array(
        [run(np.zeros((ROWS, VOCAB)), requests, num_tokens, sampler=sampler).tokens for num_tokens in range(64)]
    )
    for row in range(ROWS):
        assert len(set(draws[:, row].tolist())) > 40
        for other in range(row):
            assert (draws[:, row] == draws[:, other]).sum() < 8


@every_sampler
def test_named_tokens_have_their_logprobs(sampler: Sampler) -> None:
    logits = quantised(8, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB)
    params = SamplingParams(logprobs=0, logprob_token_ids=(7, 0, VOCAB - 1), frequency_penalty=1.0)
    named = run(logits, [params] * ROWS, sampler=sampler).logprobs.named[:, :3]
    np.testing.assert_allclose(named, log_softmax(logits)[:, [7, 0, VOCAB - 1]], rtol=1e-5, atol=1e-5)


@every_sampler
@pytest.mark.parametrize("vocab", [*swept(12), VOCAB])
def test_logprobs_are_the_models_own(vocab: int, sampler: Sampler) -> None:
    """Whatever the request makes of the logits; alternatives stand best first, ties by id, and as many as there are."""
    logits = quantised(3, ROWS * vocab, 2.0).reshape(ROWS, vocab)
    banned = int(logits[0].argmax())
    params = SamplingParams(temperature=0.5, top_k=3, min_tokens=1, stop_token_ids=(banned,), logprobs=MAX_LOGPROBS)
    sampled, expected = run(logits, [params] * ROWS, sampler=sampler), log_softmax(logits)
    tokens = np.asarray(sampled.tokens)
    assert tokens[0] != banned
    np.testing.assert_allclose(sampled.logprobs.chosen, expected[np.arange(ROWS), tokens], rtol=1e-5, atol=1e-5)
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :MAX_LOGPROBS]
    np.testing.assert_array_equal(sampled.logprobs.top_ids, best)
    np.testing.assert_allclose(sampled.logprobs.top, np.take_along_axis(expected, best, -1), rtol=1e-5, atol=1e-5)


@every_sampler
def test_logprobs_that_no_row_wants_are_zeros(sampler: Sampler) -> None:
    """One active row that wants them is enough for all rows; an idle row is not."""
    logits = quantised(4, ROWS * VOCAB, 2.0).reshape(ROWS, VOCAB)
    requests = [SamplingParams(temperature=0.0), SamplingParams(temperature=0.0, logprobs=1)] * 2
    assert np.asarray(run(logits, requests, sampler=sampler).logprobs.top).all()
    idle = run(logits, requests, active=[True, False] * 2, sampler=sampler).logprobs
    assert not any(np.asarray(x).any() for x in (idle.chosen, idle.top_ids, idle.top))


@pytest.mark.parametrize(("rows", "size"), [(512, 64), (520, 40), (1400, 56), (8, 8), (12, 12), (3, 3), (67, 1)])
def test_blocks_are_equal(rows: int, size: int) -> None:
    """520 rows are 13 blocks of 40, a multiple of 8; 52 is none."""
    assert block_size(rows) == size


def test_scores_of_a_chunk_are_the_logprobs_of_its_targets() -> None:
    """In blocks, so that the logits of a long chunk never stand in memory at once; later blocks are left out."""
    rng = np.random.default_rng(5)
    hidden, table = rng.normal(size=(12, 8)).astype(np.float32), rng.normal(size=(8, VOCAB)).astype(np.float32)
    targets = rng.integers(0, VOCAB, 12, np.int32)
    blocks: list[tuple[int, ...]] = []

    def logprobs_of(x: jax.Array, targets: jax.Array) -> Logprobs:
        blocks.append(x.shape)
        return logprobs(x @ table, targets, jnp.zeros((4, 0), jnp.int32))

    scores = jax.jit(partial(score, logprobs_of), static_argnums=(3, 4))
    scored = scores(hidden, targets, 3, 4, VOCAB)
    assert set(blocks) == {(4, 8)}
    for all_, some in zip(scored, scores(hidden, targets, 2, 4, VOCAB), strict=True):
        np.testing.assert_array_equal(some, np.where(np.arange(12) < 8, np.asarray(all_).T, 0).T)
    expected = jax.jit(logprobs)(hidden @ table, targets, np.zeros((12, 0), np.int32))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), scored, expected)
    np.testing.assert_allclose(scored.chosen, log_softmax(hidden @ table)[np.arange(12), targets], rtol=1e-5, atol=1e-5)
