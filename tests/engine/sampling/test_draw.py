"""The draw: which token a uniform number gives, and what the number depends on."""

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from roost.engine.devices.platform import CPU_OPTIONS
from roost.engine.sampling.sampler import invert
from roost.engine.types.sampling_params import SamplingParams
from sampler_cases import DRAWS, ROWS, VOCAB, Sampler, counts, every_sampler, run

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
