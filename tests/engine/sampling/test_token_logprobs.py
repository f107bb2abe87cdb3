"""Log-probabilities of generated tokens and of a prompt."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.sampling.sampler import Logprobs, block_size, logprobs, score
from roost.engine.types.sampling_params import MAX_LOGPROBS, SamplingParams
from sampler_cases import (
    ROWS,
    VOCAB,
    Sampler,
    every_sampler,
    log_softmax,
    quantised,
    run,
)
from sweeps import swept


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
    """In blocks, so that the logits of a long chunk never stand in memory at once."""
    rng = np.random.default_rng(5)
    hidden, table = rng.normal(size=(12, 8)).astype(np.float32), rng.normal(size=(8, VOCAB)).astype(np.float32)
    targets = rng.integers(0, VOCAB, 12, np.int32)
    blocks: list[tuple[int, ...]] = []

    def logprobs_of(x: jax.Array, targets: jax.Array) -> Logprobs:
        blocks.append(x.shape)
        return logprobs(x @ table, targets, jnp.zeros((4, 0), jnp.int32))

    scored = jax.jit(partial(score, logprobs_of), static_argnums=2)(hidden, targets, 4)
    assert set(blocks) == {(4, 8)}
    expected = jax.jit(logprobs)(hidden @ table, targets, np.zeros((12, 0), np.int32))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), scored, expected)
    np.testing.assert_allclose(scored.chosen, log_softmax(hidden @ table)[np.arange(12), targets], rtol=1e-5, atol=1e-5)
