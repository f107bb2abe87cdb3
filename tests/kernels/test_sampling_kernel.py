"""The sampling kernel for TPUs, interpreted: rows of many chunks, the order of lanes, and which blocks are worked on.

Its arithmetic is compared with the float64 reference of `roost.engine.sampling` beside the tests of that.
"""

from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from interpreted import interpreted
from reference_sampling import reference_distribution
from roost.engine.types.output_constraint import mask_of_ids, words_of_mask
from roost.engine.types.sampling_params import SamplingParams
from roost.kernels.sampling import SamplingInputs
from roost.kernels.sampling.pallas_tpu import sample_tpu
from roost.kernels.sampling.tiles import LANES, ROWS, lane_masks, num_chunks, padded_size
from sampling_cases import inputs_of
from sweeps import examples, swept

LONG = 10_500
"""Size of a vocabulary of 83 tiles, padded to 96: two chunks of 48."""

sample = interpreted(sample_tpu)


def drawn(logits: np.ndarray, inputs: SamplingInputs) -> np.ndarray:
    return np.asarray(sample(logits.astype(np.float32), inputs)[0])


def drawn_by_block(logits: np.ndarray, inputs: SamplingInputs) -> np.ndarray:
    """Returns the tokens of a multiple of 8 rows, one block after the other, so that only blocks are compiled."""
    starts = range(0, len(logits), ROWS)
    blocks = [jax.tree.map(lambda x, start=start: x[start : start + ROWS], (logits, inputs)) for start in starts]
    return np.concatenate([drawn(*block) for block in blocks])


@pytest.mark.parametrize(
    "numbers",
    [
        {"top_k": 700, "top_p": 0.8},
        {"typical_p": 0.6},
        *swept({}, {"top_k": 7}, {"top_p": 0.95}, {"min_p": 0.02}),
    ],
)
def test_long_rows_are_drawn_from_the_references_support(numbers: dict[str, Any]) -> None:
    """Uniform numbers at equal steps reach every token that is more likely than a step, and none outside the support.

    The reference decides on a set of the most likely tokens; rounding may move its end by a token of no weight.
    """
    rows = 256
    logits = np.random.default_rng(1).normal(size=LONG).astype(np.float32) * 2
    expected = reference_distribution(logits, SamplingParams(**numbers))
    nudged = {name: number * (1 + 1e-5) if isinstance(number, float) else number for name, number in numbers.items()}
    allowed = (expected > 0) | (reference_distribution(logits, SamplingParams(**nudged)) > 0)
    inputs = inputs_of(rows, LONG, np.arange(rows) / rows, **numbers)
    tokens = drawn_by_block(np.tile(logits, (rows, 1)), inputs)
    assert allowed[tokens].all()
    counted = np.bincount(tokens, minlength=LONG) / rows
    np.testing.assert_allclose(counted, expected, atol=1.01 / rows)


def test_uniform_numbers_walk_through_the_lanes_in_order() -> None:
    """Token 129 lies in lane 1: after token 1, and before token 2 in lane 2. The last number below 1 gives the last."""
    logits = np.full((1, 300), -np.inf)
    logits[:, [1, 129, 2, 255]] = 0.0
    tokens = [drawn(logits, inputs_of(1, 300, uniform))[0] for uniform in (0.0, 0.25, 0.5, 0.75, 1 - 2.0**-24)]
    assert tokens == [1, 129, 2, 255, 255]


@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.001, 0.02, 0.5, 1.0]))
@examples(3, sweep=8)
def test_no_uniform_number_gives_a_token_of_weight_0(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    logits = np.where(rng.random((ROWS, LONG)) < share, 3 * rng.normal(size=(ROWS, LONG)), -np.inf)
    logits[:, [0, LANES - 1, LONG - 1]] = -np.inf
    logits[:, 777] = 1.0
    tokens = drawn(logits, inputs_of(ROWS, LONG, np.tile([0.0, 2.0**-24, 0.5, 1 - 2.0**-24], 2)))
    assert np.isfinite(logits[np.arange(ROWS), tokens]).all()


@given(seed=st.integers(0, 2**32), k=st.integers(1, LONG))
@examples(3, sweep=8)
def test_greedy_rows_and_top_1_take_the_most_likely_token(seed: int, k: int) -> None:
    """Greedy rows take the first of equals. Rows of one block may differ in everything."""
    logits = np.random.default_rng(seed).integers(0, 50, (ROWS, LONG)).astype(np.float32)
    logits[:, k % LONG] = 60.0
    logits[0, (k + 5000) % LONG] = 60.0
    temperature, top_k = np.array([0.0, 1.0, 0.0, 2.0, 1e-6, 1.0, 1.0, 1.0]), np.array([0, 1, 0, 1, 0, 0, 0, 0])
    tokens = drawn(logits, inputs_of(ROWS, LONG, temperature=temperature, top_k=top_k))
    np.testing.assert_array_equal(tokens[:5], logits.argmax(axis=1)[:5])


def test_a_row_does_not_depend_on_its_block() -> None:
    """19 rows in three blocks, of which the last one is cut; alone each gets the same token."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(19, 300)) * 3
    numbers = {
        "temperature": rng.choice([0.0, 0.7, 1.3], 19),
        "top_k": rng.choice([0, 3, 200], 19),
        "top_p": rng.choice([1.0, 0.5, 0.99], 19),
        "typical_p": rng.choice([1.0, 0.4], 19),
    }
    uniform = rng.random(19, np.float32)
    together = drawn(logits, inputs_of(19, 300, uniform, **numbers))
    for row in range(19):
        own = {name: column[row] for name, column in numbers.items()}
        assert drawn(logits[row : row + 1], inputs_of(1, 300, uniform[row], **own))[0] == together[row]


def test_logits_that_are_not_numbers_are_reported() -> None:
    logits = np.zeros((19, 300), np.float32)
    logits[3, 130], logits[9, 299], logits[4] = np.nan, np.inf, -np.inf
    best = np.asarray(sample(logits, inputs_of(19, 300, top_p=0.5))[1])
    assert not np.isfinite(best[[3, 9]]).any()
    assert not (best[[3, 9]] == -np.inf).any()
    assert best[4] == -np.inf
    assert (np.delete(best, [3, 4, 9]) == 0).all()


@given(vocab=st.integers(1, LONG), seed=st.integers(0, 2**32))
@examples(3, sweep=8)
def test_lane_masks_hold_the_bits_of_a_lane(vocab: int, seed: int) -> None:
    ids = np.flatnonzero(np.random.default_rng(seed).random(vocab) < 0.5).tolist()
    masks = np.asarray(lane_masks(jnp.asarray(mask_of_ids(ids, words_of_mask(vocab)))[None], vocab))[0]
    tokens = np.arange(padded_size(vocab))
    tile, lane = tokens // LANES, tokens % LANES
    bits = masks[tile // 32 * LANES + lane] >> (tile % 32).astype(np.uint32) & 1
    np.testing.assert_array_equal(np.flatnonzero(bits), ids)


@given(vocab=st.integers(1, 300_000))
def test_rows_split_into_chunks_that_fit_registers(vocab: int) -> None:
    """Of up to 80 tiles; in long rows of at least 16, so that a loop is worth its step."""
    size = padded_size(vocab)
    tiles, chunks = size // LANES, num_chunks(size)
    assert vocab <= size < vocab + 16 * LANES
    assert tiles % chunks == 0
    assert min(tiles, 16) <= tiles // chunks <= 80


def test_the_kernel_reads_the_logits_once() -> None:
    """The estimate that XLA schedules by counts them once, and no more."""
    logits = jax.ShapeDtypeStruct((16, 256_000), jnp.float32)
    inputs = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, inputs_of(16, 256_000)))
    jaxpr = jax.make_jaxpr(sample_tpu)(logits, inputs)
    calls = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "pallas_call"]
    assert [call.params["cost_estimate"].bytes_accessed for call in calls] == [4 * 16 * 256_000]
