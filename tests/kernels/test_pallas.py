"""Operations with Pallas kernels for TPUs and GPUs: both, interpreted on a CPU, against the references."""

from functools import partial

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import SEEDS, positions
from hypothesis import given
from interpreted import KERNELS, Kernels
from roost.kernels.references import window_attention_reference
from sweeps import examples, swept

ROWS = 3

close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return KERNELS[request.param]


@pytest.mark.parametrize(
    ("window", "heads", "size"),
    [(16, 1, 8), (300, 10, 48), *swept((50, 3, 8), (1024, 2, 8))],
)
@given(seed=SEEDS, data=st.data())
@examples(3, sweep=10)
def test_decode_attention(kernels: Kernels, window: int, heads: int, size: int, seed: int, data: st.DataObject) -> None:
    """Idle rows, and empty, partly filled and wrapped rings; unfilled rows hold NaN and have no effect.

    The keys are written into the first rings of a larger pool, over those that were just attended to.
    """
    place = st.integers(0, 3 * window)
    where = np.array([data.draw(st.just(-1) | place) for _ in range(ROWS)], np.int32)
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(ROWS, heads, size)).astype(np.float32)
    k, v = rng.normal(size=(2, ROWS, size)).astype(np.float32)
    ring_k, ring_v = rng.normal(size=(2, ROWS + 1, window, size)).astype(np.float32)
    unfilled = np.arange(window) >= np.append(where, 0)[:, None]
    dirty = [np.where(unfilled[..., None], np.float32("nan"), ring) for ring in (ring_k, ring_v)]
    out, written = kernels.decode(q, k, v, *dirty, where)
    first = (q[:, None], k[:, None], v[:, None], dirty[0][:ROWS], dirty[1][:ROWS], where[:, None])
    expected, *rings = window_attention_reference(*first)
    close(np.asarray(out)[where >= 0], expected[where >= 0, 0])
    np.testing.assert_array_equal(np.asarray(out)[where < 0], 0.0)
    for new, ring, old in zip(written, rings, dirty, strict=True):
        np.testing.assert_array_equal(new, np.concatenate([ring, old[ROWS:]]).astype(np.float32))


@pytest.mark.parametrize(
    ("steps", "window", "heads", "size"),
    [
        (40, 300, 1, 8),
        (300, 50, 3, 8),
        *swept((12, 5, 2, 8), (20, 16, 10, 48)),
    ],
)
@given(seed=SEEDS, data=st.data())
@examples(3, sweep=8)
def test_prefill_attention(
    kernels: Kernels, steps: int, window: int, heads: int, size: int, seed: int, data: st.DataObject
) -> None:
    """Windows smaller and larger than the chunk, several blocks of queries and keys, and any start positions.

    What is not filled of a ring holds NaN; padding, as a model makes it, finite numbers.
    """
    where = data.draw(positions(ROWS, steps))
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(ROWS, steps, heads, size)).astype(np.float32)
    k, v = rng.normal(size=(2, ROWS, steps, size)).astype(np.float32)
    ring_k, ring_v = rng.normal(size=(2, ROWS, window, size)).astype(np.float32)
    unfilled = np.arange(window) >= where[:, :1]
    dirty = [np.where(unfilled[..., None], np.float32("nan"), ring) for ring in (ring_k, ring_v)]
    out = np.asarray(kernels.prefill(q, k, v, *dirty, where))
    expected, *_ = window_attention_reference(q, k, v, ring_k, ring_v, where)
    close(out[where >= 0], expected[where >= 0])
    assert np.isfinite(out).all()


@pytest.mark.parametrize("size", [*swept(8), 128])
def test_prefill_attention_far_into_documents(kernels: Kernels, size: int) -> None:
    """All queries of a block see whole blocks of keys, in rings that are partly filled, almost full, or full."""
    steps, window, heads = 140, 600, 2
    where = np.array([300, 590, 2000])[:ROWS, None] + np.arange(steps, dtype=np.int32)
    rng = np.random.default_rng(1)
    q = rng.normal(size=(ROWS, steps, heads, size)).astype(np.float32)
    k, v = rng.normal(size=(2, ROWS, steps, size)).astype(np.float32)
    ring_k, ring_v = rng.normal(size=(2, ROWS, window, size)).astype(np.float32)
    unfilled = np.arange(window) >= where[:, :1]
    dirty = [np.where(unfilled[..., None], np.float32("nan"), ring) for ring in (ring_k, ring_v)]
    expected, *_ = window_attention_reference(q, k, v, ring_k, ring_v, where)
    close(np.asarray(kernels.prefill(q, k, v, *dirty, where)), expected)


def test_bfloat16_stays_within_its_rounding(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    where = np.tile(np.arange(30, 70, dtype=np.int32), (ROWS, 1))
    qkv = rng.normal(size=(ROWS, 40, 4, 16)).astype(jnp.bfloat16)
    ring_k, ring_v = rng.normal(size=(2, ROWS, 32, 16)).astype(jnp.bfloat16)
    q, k, v = qkv[:, :, :2], qkv[:, :, 2], qkv[:, :, 3]
    wide = [x.astype(np.float32) for x in (q, k, v, ring_k, ring_v)]
    expected, *_ = window_attention_reference(*wide, where)
    out = kernels.prefill(q, k, v, ring_k, ring_v, where)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), expected, rtol=0.02, atol=0.03)
    one, rings = kernels.decode(q[:, 0], k[:, 0], v[:, 0], ring_k, ring_v, where[:, 0])
    assert one.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(one), expected[:, 0], rtol=0.02, atol=0.03)
    _, *expected_rings = window_attention_reference(*(x[:, :1] for x in wide[:3]), *wide[3:], where[:, :1])
    for new, ring in zip(rings, expected_rings, strict=True):
        assert new.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.float32(new), ring)
