"""Operations with Pallas kernels for TPUs only, interpreted on a CPU, against the references."""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import SEEDS, positions
from hypothesis import given
from int8_cases import as_floats, blocks_of_32_rows, draw_float32, int8, int8_matrix
from interpreted import interpreted, interpreted_copies
from roost.kernels.matrices import Int8Matrix
from roost.kernels.matrices.int8 import quantized_dot
from roost.kernels.products.pallas_tpu import (
    argmax_tpu,
    block_of_rows,
    gated_mlp_tpu,
    int8_gated_mlp_tpu,
    int8_product_tpu,
)
from roost.kernels.recurrent_block import RecurrentInputs, RecurrentWeights
from roost.kernels.recurrent_block.pallas_tpu import recurrent_chunk_tpu, recurrent_step_tpu
from roost.kernels.references import (
    gated_mlp_reference,
    int8_gated_mlp_reference,
    int8_product_reference,
    recurrent_block_reference,
    window_attention_reference,
)
from roost.kernels.window_attention import Int8Vectors
from roost.kernels.window_attention.pallas_tpu_decode import decode_attention_tpu
from roost.kernels.window_attention.pallas_tpu_prefill import prefill_attention_tpu
from sweeps import examples, swept

ROWS = 3

EVERY = 64

step, chunk, mlp, int8_mlp, int8_product = (
    interpreted(kernel)
    for kernel in (
        recurrent_step_tpu,
        partial(recurrent_chunk_tpu, every=EVERY),
        gated_mlp_tpu,
        int8_gated_mlp_tpu,
        partial(int8_product_tpu, dtype=jnp.dtype("float32")),
    )
)
decode_int8, prefill_int8 = interpreted_copies(decode_attention_tpu), interpreted(prefill_attention_tpu)


xla_product = jax.jit(quantized_dot)


@cache
def argmax(cap: float | None) -> Callable[..., Any]:
    return interpreted(partial(argmax_tpu, cap=cap))


@cache
def step_of_groups(groups: int) -> Callable[..., Any]:
    return interpreted(partial(recurrent_step_tpu, groups=groups))


@pytest.mark.parametrize(("rows", "pool", "groups"), [(8, 21, 1), (48, 96, 2), *swept((16, 48, 2))])
@given(seed=SEEDS)
@examples(3, sweep=10)
def test_recurrent_step_of_some_rows_of_a_state(rows: int, pool: int, groups: int, seed: int) -> None:
    """The first rows of each group are those of a step by themselves, and the others stay as they are."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    where = rng.choice([-1, 0, 1, 50], rows).astype(np.int32)
    weights = RecurrentWeights(draw(4, 16), draw(16), draw(2, 8, 16), draw(2, 16), 2 * draw(16) - 2)
    xy = draw(rows, 32)
    conv, h = draw(3, pool, 16), draw(pool, 16)
    own = [group * (pool // groups) + row for group in range(groups) for row in range(rows // groups)]
    out, new_conv, new_h = step_of_groups(groups)(xy, RecurrentInputs(weights, conv, h, where))
    expected, conv[:, own], h[own] = step(xy, RecurrentInputs(weights, conv[:, own], h[own], where))
    for found, wanted in zip((out, new_conv, new_h), (expected, conv, h), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("rows", "blocks", "size", "taps"), [(ROWS, 2, 12, 4), (268, 1, 256, 2), *swept((304, 1, 256, 2))]
)
@given(seed=SEEDS)
@examples(3, sweep=10)
def test_recurrent_step(rows: int, blocks: int, size: int, taps: int, seed: int) -> None:
    """Rows at, near and far from a document start, and idle rows; one or several blocks, the last one not whole."""
    rng, width = np.random.default_rng(seed), blocks * size
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    where = rng.choice([-1, 0, 1, 2, 3, 50], rows).astype(np.int32)
    xy, conv, h = draw(rows, 2 * width), draw(taps - 1, rows, width), draw(rows, width)
    weights = (draw(taps, width), draw(width), draw(blocks, size, 2 * size), draw(blocks, 2 * size))
    a_param = 2 * draw(width) - 2
    out, new_conv, new_h = step(xy, RecurrentInputs(RecurrentWeights(*weights, a_param), conv, h, where))
    expected, expected_conv, expected_h = recurrent_block_reference(
        xy[:, None], *weights, a_param, conv, h, where[:, None]
    )
    busy = where >= 0
    np.testing.assert_allclose(np.asarray(out)[busy], expected[busy, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new_h, expected_h, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(new_h)[~busy], h[~busy])
    np.testing.assert_array_equal(new_conv, expected_conv.astype(np.float32))


@pytest.mark.parametrize(
    ("rows", "pool", "num_blocks"), [(608, 608, 4), (1512, 1512, 7), (3000, 3000, 15), (512, 1512, 2), (1112, 1112, 9)]
)
def test_blocks_of_rows_divide_the_rows(rows: int, pool: int, num_blocks: int) -> None:
    """Default numbers of slots have divisors of 128 to 256. Of 1,112 the largest is 8, so the last block is cut."""
    size = 256
    shapes = ((4, size), (size,), (1, size, 2 * size), (1, 2 * size), (size,))
    weights = RecurrentWeights(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, 2 * size), (3, pool, size), (pool, size))]
    positions = jax.ShapeDtypeStruct((rows,), jnp.int32)
    jaxpr = jax.make_jaxpr(recurrent_step_tpu)(arrays[0], RecurrentInputs(weights, *arrays[1:], positions))
    (call,) = (each for each in jaxpr.jaxpr.eqns if each.primitive.name == "pallas_call")
    assert call.params["grid_mapping"].grid == (1, num_blocks)


@pytest.mark.parametrize(("steps", "blocks", "size", "taps"), [(5, 2, 12, 4), (300, 1, 128, 2)])
@given(data=st.data(), seed=SEEDS)
@examples(3, sweep=10)
def test_recurrent_chunk(steps: int, blocks: int, size: int, taps: int, data: st.DataObject, seed: int) -> None:
    """Rows that begin or continue a document, of any length; one or several blocks of time."""
    where, width = data.draw(positions(ROWS, steps)), blocks * size
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    xy, conv, h = draw(ROWS, steps, 2 * width), draw(taps - 1, ROWS, width), draw(ROWS, width)
    weights = (draw(taps, width), draw(width), draw(blocks, size, 2 * size), draw(blocks, 2 * size))
    a_param = 4 * draw(width) - 2
    out, new_h, between = chunk(xy, RecurrentInputs(RecurrentWeights(*weights, a_param), conv, h, where))
    expected, _, expected_h = recurrent_block_reference(xy, *weights, a_param, conv, h, where)
    assert between.shape == (ROWS, -(-steps // EVERY), width)
    for place in sorted({0, between.shape[1] // 2, between.shape[1] - 1}):
        earlier = np.where(np.arange(steps) < (place + 1) * EVERY, where, -1)
        *_, expected_then = recurrent_block_reference(xy, *weights, a_param, conv, h, earlier)
        np.testing.assert_allclose(between[:, place], expected_then, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(np.asarray(out)[where >= 0], expected[where >= 0], rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(new_h, expected_h, rtol=2e-4, atol=2e-4)
    idle = np.all(where < 0, axis=1)
    np.testing.assert_array_equal(np.asarray(new_h)[idle], h[idle])


@pytest.mark.parametrize(("rows", "width", "hidden"), [(1, 16, 24), (40, 32, 512)])
@given(seed=SEEDS)
@examples(3, sweep=10)
@blocks_of_32_rows()
def test_gated_mlp(rows: int, width: int, hidden: int, seed: int) -> None:
    """One or several blocks of rows, and tiles of hidden channels."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    x, weights = draw(rows, width), (draw(2 * hidden, width), draw(2 * hidden), draw(width, hidden), draw(width))
    np.testing.assert_allclose(mlp(x, *weights), gated_mlp_reference(x, *weights), rtol=2e-4, atol=2e-3)


def keys_with_outliers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Keys of which one RoPE pair is 20 times as large as the others, as in trained models."""
    keys = rng.normal(size=shape).astype(np.float32)
    pair, quarter = rng.integers(shape[-1] // 4), shape[-1] // 4
    keys[..., [pair, pair + quarter]] *= 20
    return keys


def spoiled(ring: Int8Vectors, unfilled: np.ndarray) -> Int8Vectors:
    """What is not filled of rings holds any values, with scales that are no numbers."""
    values = np.where(unfilled[..., None], np.int8(99), ring.values)
    return Int8Vectors(values, np.where(unfilled[:, None], np.float32("nan"), ring.scale))


@pytest.mark.parametrize(
    ("window", "heads", "size"),
    [(50, 3, 8), (384, 10, 48), *swept((16, 1, 8), (2048, 2, 8))],
)
@given(seed=SEEDS, data=st.data())
@examples(3, sweep=10)
def test_decode_attention_over_rings_in_int8(
    window: int, heads: int, size: int, seed: int, data: st.DataObject
) -> None:
    """Outputs are those of the values that the rings hold, the row's own included; writes are bit for bit."""
    place = st.integers(0, 3 * window)
    where = np.array([data.draw(st.just(-1) | place) for _ in range(ROWS)], np.int32)
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(ROWS, heads, size)).astype(np.float32) / 20
    k, v = int8(keys_with_outliers(rng, ROWS, size)), int8(rng.normal(size=(ROWS, size)).astype(np.float32))
    unfilled = np.arange(window) >= np.append(where, 0)[:, None]
    pool = (ROWS + 1, window, size)
    rings = [int8(x) for x in (keys_with_outliers(rng, *pool), rng.normal(size=pool).astype(np.float32))]
    dirty = [spoiled(ring, unfilled) for ring in rings]
    out, written = decode_int8(q, k, v, *dirty, where)
    seen = (as_floats(k)[:, None], as_floats(v)[:, None], *(as_floats(ring)[:ROWS] for ring in rings))
    expected, *_ = window_attention_reference(q[:, None], *seen, where[:, None])
    busy = where >= 0
    np.testing.assert_allclose(np.asarray(out)[busy], expected[busy, 0], rtol=5e-5, atol=5e-5)
    np.testing.assert_array_equal(np.asarray(out)[~busy], 0.0)
    for found, old, new in zip(written, dirty, (k, v), strict=True):
        wanted = jax.tree.map(np.copy, old)
        wanted.values[np.flatnonzero(busy), where[busy] % window] = new.values[busy]
        wanted.scale[np.flatnonzero(busy), 0, where[busy] % window] = new.scale[busy, 0]
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("steps", "window", "heads", "size"), [(300, 50, 3, 8), (20, 300, 10, 48), *swept((12, 5, 2, 8))]
)
@given(seed=SEEDS, data=st.data())
@examples(3, sweep=8)
def test_prefill_attention_over_rings_in_int8(
    steps: int, window: int, heads: int, size: int, seed: int, data: st.DataObject
) -> None:
    """Queries attend to the values in int8, those of their own chunk included."""
    where = data.draw(positions(ROWS, steps))
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(ROWS, steps, heads, size)).astype(np.float32) / 20
    chunk, ring = (ROWS, steps, size), (ROWS, window, size)
    k, ring_k = (int8(keys_with_outliers(rng, *shape)) for shape in (chunk, ring))
    v, ring_v = (int8(rng.normal(size=shape).astype(np.float32)) for shape in (chunk, ring))
    unfilled = np.arange(window) >= where[:, :1]
    out = np.asarray(prefill_int8(q, k, v, spoiled(ring_k, unfilled), spoiled(ring_v, unfilled), where))
    expected, *_ = window_attention_reference(q, *map(as_floats, (k, v, ring_k, ring_v)), where)
    np.testing.assert_allclose(out[where >= 0], expected[where >= 0], rtol=5e-5, atol=5e-5)
    assert np.isfinite(out).all()


def with_outliers(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Draws activations with a few large channels, as models have them, and a row of zeros."""
    x = draw_float32(rng, rows, width) * np.exp(draw_float32(rng, width))
    x[rng.integers(rows)] = 0.0
    return x


@pytest.mark.parametrize(("rows", "width", "outputs"), [(1, 16, 24), (40, 1024, 600)])
@given(seed=SEEDS)
@examples(3, sweep=10)
@blocks_of_32_rows()
def test_int8_product(rows: int, width: int, outputs: int, seed: int) -> None:
    """One or several blocks of rows and tiles, the last ones not whole.

    XLA's product quantises the same way, up to its last bits. Rounding may differ from the reference's in an input that
    is halfway between two steps.
    """
    rng = np.random.default_rng(seed)
    x, (values, scale, bias) = with_outliers(rng, rows, width), int8_matrix(rng, outputs, width)
    found = np.asarray(int8_product(x, Int8Matrix(values, scale), bias))
    one_step = np.abs(x).max(axis=1, keepdims=True) * scale  # of an input, times the largest weight
    assert (np.abs(found - int8_product_reference(x, values, scale, bias)) <= one_step + 1e-5).all()
    np.testing.assert_allclose(found, xla_product(x, Int8Matrix(values, scale)) + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "width", "hidden"), [(1, 16, 24), (40, 256, 512)])
@given(seed=SEEDS)
@examples(3, sweep=10)
@blocks_of_32_rows()
def test_int8_gated_mlp(rows: int, width: int, hidden: int, seed: int) -> None:
    """One or several blocks of rows, and tiles of each matrix.

    The products between the matrices are quantised by whole rows. Rounding differs from the reference's in a number
    that is halfway between two steps: in one of the inputs, and in a few of the products.
    """
    rng = np.random.default_rng(seed)
    x = with_outliers(rng, rows, width)
    gate_up, down = int8_matrix(rng, 2 * hidden, width), int8_matrix(rng, width, hidden)
    expected, products = int8_gated_mlp_reference(x, *gate_up, *down)
    few_steps = 3 * np.abs(products).max(axis=1, keepdims=True) * down[1]
    (*both, both_bias), (*out, out_bias) = gate_up, down
    found = np.asarray(int8_mlp(x, Int8Matrix(*both), both_bias, Int8Matrix(*out), out_bias))
    assert (np.abs(found - expected) <= few_steps + 1e-4).all()


@pytest.mark.parametrize(("rows", "width", "tokens", "cap"), [(1, 128, 128, None), (40, 256, 1152, 1000.0)])
@given(seed=SEEDS)
@examples(3, sweep=10)
@blocks_of_32_rows()
def test_argmax(rows: int, width: int, tokens: int, cap: float | None, seed: int) -> None:
    """One or several blocks of rows and tiles, the last ones not whole.

    Small integers, so that all sums are exact and many are equal.
    """
    rng = np.random.default_rng(seed)
    x, weight = (np.float32(rng.integers(-2, 3, shape)) for shape in ((rows, width), (tokens, width)))
    x[:, 0] = 127.0  # the largest of each row, which int8 divides by: quantising changes nothing
    expected = (x @ weight.T).argmax(axis=1)
    for matrix in (
        weight.astype(jnp.bfloat16),
        weight,
        Int8Matrix(weight.astype(np.int8), np.ones(tokens, np.float32)),
    ):
        np.testing.assert_array_equal(argmax(cap)(x.astype(jnp.bfloat16), matrix), expected)


def test_the_argmax_is_the_first_of_logits_that_the_cap_makes_equal() -> None:
    x, weight = np.full((1, 128), 50.0, np.float32), np.zeros((1152, 128), np.float32)
    weight[[700, 901], :] = [[1.0], [2.0]]  # logits 6,400 and 12,800
    assert (argmax(30.0)(x, weight), argmax(None)(x, weight)) == (700, 901)


def test_the_argmax_of_a_row_without_numbers_is_a_token() -> None:
    x = np.full((2, 128), np.nan, np.float32)
    x[1] = 1.0
    assert all(0 <= token < 384 for token in argmax(30.0)(x, np.ones((384, 128), np.float32)).tolist())


@pytest.mark.parametrize("spoiled", [np.nan, -np.nan, np.inf])
def test_int8_rows_with_a_nan_or_infinity_give_no_finite_number(spoiled: float) -> None:
    """So do XLA, which GPUs use, and the reference. Other rows are those without it."""
    rng = np.random.default_rng(0)
    x, (values, scale, bias) = draw_float32(rng, 5, 256), int8_matrix(rng, 24, 256)
    mlp_weights = Int8Matrix(*int8_matrix(rng, 48, 256)[:2]), np.zeros(48, np.float32)
    dirty = x.copy()
    dirty[2, 77] = spoiled

    def gated(x: np.ndarray) -> Any:
        return int8_mlp(x, *mlp_weights, Int8Matrix(*int8_matrix(np.random.default_rng(1), 256, 24)[:2]), None)

    with np.errstate(invalid="ignore"):
        for multiply in (
            lambda x: int8_product(x, Int8Matrix(values, scale), bias),
            lambda x: xla_product(x, Int8Matrix(values, scale)) + bias,
            lambda x: int8_product_reference(x, values, scale, bias),
            gated,
        ):
            found, expected = np.asarray(multiply(dirty)), np.asarray(multiply(x))
            assert not np.isfinite(found[2]).any()
            np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(expected, 2, axis=0))
            assert np.isnan(found[2]).all() or spoiled == np.inf


@pytest.mark.parametrize("kernel", [partial(int8_product_tpu, dtype=jnp.dtype("bfloat16")), int8_gated_mlp_tpu])
def test_int8_kernels_take_no_maximum_of_floats(kernel: Callable[..., Any]) -> None:
    """A chip may return the number as the maximum of a number and a NaN; a row's NaN would be lost."""
    matrix = Int8Matrix(jnp.zeros((256, 128), jnp.int8), jnp.zeros(256))
    down = (Int8Matrix(jnp.zeros((128, 128), jnp.int8), jnp.zeros(128)), jnp.zeros(128))
    arguments = (matrix, jnp.zeros(256)) if isinstance(kernel, partial) else (matrix, jnp.zeros(256), *down)
    traced = str(jax.make_jaxpr(kernel)(jnp.zeros((8, 128), jnp.bfloat16), *arguments))
    assert re.search(r":i32\[[\d,]*\] = max ", traced)
    assert not re.search(r":b?f\d+\[[\d,]*\] = (?:reduce_)?max\b", traced)


@pytest.mark.parametrize("rows", [1, 640, 2048])
def test_rows_in_blocks_of_equal_size(rows: int) -> None:
    """As many rows as fit, in multiples of 32; here 1,100 at most."""
    block = block_of_rows(rows, row_bytes=2**16, tile_bytes=2**20)
    assert block == {1: 1, 640: 640, 2048: 1024}[rows]
