"""The TPU kernels, interpreted on a CPU, against the oracles."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import SEEDS, positions
from hypothesis import given, settings
from roost.kernels.gated_mlp.pallas_tpu import gated_mlp_tpu
from roost.kernels.gated_mlp.reference import gated_mlp_reference
from roost.kernels.recurrent_block.pallas_tpu import recurrent_chunk_tpu, recurrent_step_tpu
from roost.kernels.recurrent_block.reference import recurrent_block_reference
from roost.kernels.rg_lru.pallas_tpu import rg_lru_tpu
from roost.kernels.rg_lru.reference import rg_lru_reference
from roost.kernels.window_attention.pallas_tpu import decode_attention_tpu, prefill_attention_tpu
from roost.kernels.window_attention.reference import window_attention_reference

ROWS = 3

scan = jax.jit(partial(rg_lru_tpu, interpret=True))
decode = jax.jit(partial(decode_attention_tpu, interpret=True))
step = jax.jit(partial(recurrent_step_tpu, interpret=True))
chunk = jax.jit(partial(recurrent_chunk_tpu, interpret=True))
mlp = jax.jit(partial(gated_mlp_tpu, interpret=True))
prefill = jax.jit(partial(prefill_attention_tpu, interpret=True))

close = partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("steps", "width"), [(1, 24), (20, 24), (20, 256), (300, 128)])
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=10)
def test_rg_lru(steps: int, width: int, data: st.DataObject, seed: int) -> None:
    """One block of time and several, channels in whole registers and not; resets anywhere, padding inert."""
    where = data.draw(positions(ROWS, steps, several_documents=True))
    rng = np.random.default_rng(seed)
    x, input_gate, recurrence_gate = (2 * rng.normal(size=(3, ROWS, steps, width))).astype(np.float32)
    log_decay = -np.exp(2 * rng.normal(size=width) - 2).astype(np.float32)
    h0 = rng.normal(size=(ROWS, width)).astype(np.float32)
    y, last = scan(x, input_gate, recurrence_gate, log_decay, h0, where)
    expected, expected_last = rg_lru_reference(x, input_gate, recurrence_gate, log_decay, h0, where)
    close(np.asarray(y)[where >= 0], expected[where >= 0])
    close(last, expected_last)
    idle = np.all(where < 0, axis=1)
    np.testing.assert_array_equal(np.asarray(last)[idle], h0[idle])


@pytest.mark.parametrize(("window", "heads"), [(16, 1), (50, 3), (1024, 2)])
@given(seed=SEEDS, data=st.data())
@settings(max_examples=10)
def test_decode_attention(window: int, heads: int, seed: int, data: st.DataObject) -> None:
    """Idle rows, empty, part-filled and wrapped rings; what is not filled holds NaN and is never reckoned."""
    place = st.integers(0, 3 * window)
    where = np.array([data.draw(st.just(-1) | place) for _ in range(ROWS)], np.int32)
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(ROWS, heads, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, ROWS, 8)).astype(np.float32)
    ring_k, ring_v = rng.normal(size=(2, ROWS, window, 8)).astype(np.float32)
    unfilled = np.arange(window) >= where[:, None]
    dirty = [np.where(unfilled[..., None], np.float32("nan"), ring) for ring in (ring_k, ring_v)]
    out = np.asarray(decode(q, k, v, *dirty, where))
    expected, *_ = window_attention_reference(q[:, None], k[:, None], v[:, None], ring_k, ring_v, where[:, None])
    close(out[where >= 0], expected[where >= 0, 0])
    np.testing.assert_array_equal(out[where < 0], 0.0)


@pytest.mark.parametrize(("steps", "window", "heads"), [(12, 5, 2), (40, 300, 1), (300, 50, 3)])
@given(seed=SEEDS, data=st.data())
@settings(max_examples=8)
def test_prefill_attention(steps: int, window: int, heads: int, seed: int, data: st.DataObject) -> None:
    """Windows below and above the chunk, several blocks of queries and of keys, prompts at any place."""
    where = data.draw(positions(ROWS, steps))
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(ROWS, steps, heads, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, ROWS, steps, 8)).astype(np.float32)
    ring_k, ring_v = rng.normal(size=(2, ROWS, window, 8)).astype(np.float32)
    out = np.asarray(prefill(q, k, v, ring_k, ring_v, where))
    expected, *_ = window_attention_reference(q, k, v, ring_k, ring_v, where)
    close(out[where >= 0], expected[where >= 0])


@pytest.mark.parametrize(("rows", "blocks", "size", "taps"), [(ROWS, 2, 12, 4), (256, 1, 128, 2)])
@given(seed=SEEDS)
@settings(max_examples=10)
def test_recurrent_step(rows: int, blocks: int, size: int, taps: int, seed: int) -> None:
    """Rows at a document's start, within reach of it, far from it, and idle; one block of rows and several."""
    rng, width = np.random.default_rng(seed), blocks * size
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    where = rng.choice([-1, 0, 1, 2, 3, 50], rows).astype(np.int32)
    xy, conv, h = draw(rows, 2 * width), draw(taps - 1, rows, width), draw(rows, width)
    weights = (draw(taps, width), draw(width), draw(blocks, size, 2 * size), draw(blocks, 2 * size))
    log_decay = -np.exp(draw(width))
    out, new_conv, new_h = step(xy, *weights, log_decay, conv, h, where)
    expected, expected_conv, expected_h = recurrent_block_reference(
        xy[:, None], *weights, log_decay, conv, h, where[:, None]
    )
    busy = where >= 0
    np.testing.assert_allclose(np.asarray(out)[busy], expected[busy, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new_h, expected_h, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(new_h)[~busy], h[~busy])
    np.testing.assert_array_equal(new_conv, expected_conv.astype(np.float32))


@pytest.mark.parametrize(("steps", "blocks", "size", "taps"), [(5, 2, 12, 4), (300, 1, 128, 2)])
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=10)
def test_recurrent_chunk(steps: int, blocks: int, size: int, taps: int, data: st.DataObject, seed: int) -> None:
    """Rows that begin a document and that go on with one, of any length; one block of time and several."""
    where, width = data.draw(positions(ROWS, steps)), blocks * size
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    xy, conv, h = draw(ROWS, steps, 2 * width), draw(taps - 1, ROWS, width), draw(ROWS, width)
    weights = (draw(taps, width), draw(width), draw(blocks, size, 2 * size), draw(blocks, 2 * size))
    log_decay = -np.exp(2 * draw(width))
    out, new_h = chunk(xy, *weights, log_decay, conv, h, where)
    expected, _, expected_h = recurrent_block_reference(xy, *weights, log_decay, conv, h, where)
    np.testing.assert_allclose(np.asarray(out)[where >= 0], expected[where >= 0], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(new_h, expected_h, rtol=2e-4, atol=2e-4)
    idle = np.all(where < 0, axis=1)
    np.testing.assert_array_equal(np.asarray(new_h)[idle], h[idle])


@pytest.mark.parametrize(("rows", "width", "hidden"), [(1, 16, 24), (5, 32, 512)])
@given(seed=SEEDS)
@settings(max_examples=10)
def test_gated_mlp(rows: int, width: int, hidden: int, seed: int) -> None:
    """The hidden width in one block and in several."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    x, weights = draw(rows, width), (draw(2 * hidden, width), draw(2 * hidden), draw(width, hidden), draw(width))
    np.testing.assert_allclose(mlp(x, *weights), gated_mlp_reference(x, *weights), rtol=2e-4, atol=2e-3)


def test_bfloat16_stays_within_its_rounding() -> None:
    rng = np.random.default_rng(0)
    where = np.tile(np.arange(30, 70, dtype=np.int32), (ROWS, 1))
    qkv = rng.normal(size=(ROWS, 40, 4, 16)).astype(jnp.bfloat16)
    ring_k, ring_v = rng.normal(size=(2, ROWS, 32, 16)).astype(jnp.bfloat16)
    q, k, v = qkv[:, :, :2], qkv[:, :, 2], qkv[:, :, 3]
    wide = [x.astype(np.float32) for x in (q, k, v, ring_k, ring_v)]
    expected, *_ = window_attention_reference(*wide, where)
    np.testing.assert_allclose(np.float32(prefill(q, k, v, ring_k, ring_v, where)), expected, rtol=0.02, atol=0.03)
    one = decode(q[:, 0], k[:, 0], v[:, 0], ring_k, ring_v, where[:, 0])
    np.testing.assert_allclose(np.float32(one), expected[:, 0], rtol=0.02, atol=0.03)
