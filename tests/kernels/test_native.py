"""Native kernels against XLA's products, bit for bit, or against float64; rows are independent of each other."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_cases import CPU_OPTIONS, SEEDS
from hypothesis import example, given
from roost.kernels import XLA, Backend, native
from roost.kernels.backends import CPU
from roost.kernels.matrices import Int4Matrix, Int8Matrix, PackedGates
from roost.kernels.matrices import packed as packing
from roost.kernels.matrices.int8 import quantize_on_host, quantized_dot
from roost.kernels.native import library
from roost.kernels.products import argmax, gated_mlp, logits, product
from roost.kernels.recurrent_block import RecurrentInputs, RecurrentWeights
from roost.kernels.references import gated_mlp_reference, recurrent_block_reference, window_attention_reference
from roost.kernels.window_attention import decode_attention
from sweeps import examples, full

pytestmark = pytest.mark.skipif(
    not native.is_available(),
    reason="the native kernels are not compiled, or this processor lacks AVX2",
)

ROWS = st.sampled_from([1, 2, 3, 4, 5, 8, 13, 32, 40, 70])
OUTPUTS = st.sampled_from([16, 32, 48, 64, 208])
INPUTS = st.sampled_from([4, 8, 28, 32, 36, 64, 100, 128, 260, 1100])
TYPES = st.sampled_from(["float32", "bfloat16"])

F32 = jnp.dtype("float32")

jit = partial(jax.jit, compiler_options=CPU_OPTIONS)
xla_int8 = jit(quantized_dot)
int8_product = jax.jit(native.int8_product, static_argnums=4)
bf16_product = jax.jit(native.bf16_product, static_argnums=(3, 4))
step = jax.jit(native.recurrent_step)
chunk = jax.jit(native.recurrent_chunk, static_argnums=2)
attend = jax.jit(decode_attention, static_argnums=5)
attend_chunk = jax.jit(native.prefill_attention, static_argnums=6)


def packed(matrix: np.ndarray) -> np.ndarray:
    return packing.pack(matrix.copy())


def int8(
    x: np.ndarray, values: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, dtype: jnp.dtype = F32
) -> np.ndarray:
    return np.asarray(int8_product(x, packed(values), scale, bias, dtype))


def bf16(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    dtype: jnp.dtype = F32,
    products: native.Products | None = None,
) -> np.ndarray:
    return np.asarray(bf16_product(x, packed(weight), bias, dtype, products))


def draw(seed: int, *shape: int) -> np.ndarray:
    """Draws normal numbers with rows of different scales, some of them zeros."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(size=shape) * rng.choice([0.0, 0.1, 1.0, 30.0], (shape[0], *[1] * (len(shape) - 1))))


@given(seed=SEEDS, rows=ROWS, outputs=OUTPUTS, inputs=INPUTS, kind=TYPES, result=TYPES, has_bias=st.booleans())
@example(seed=0, rows=8, outputs=1008, inputs=7680, kind="bfloat16", result="bfloat16", has_bias=True)
@examples(5, sweep=15)
def test_products_in_int8_are_xlas(
    seed: int, rows: int, outputs: int, inputs: int, kind: str, result: str, has_bias: bool
) -> None:
    x = draw(seed, rows, inputs).astype(kind)
    weight = quantize_on_host(draw(seed + 1, outputs, inputs).astype(np.float32))
    bias = draw(seed + 2, outputs).astype(np.float32) if has_bias else None
    expected = np.asarray(xla_int8(x, weight))
    expected = (expected if bias is None else expected + bias).astype(result)
    np.testing.assert_array_equal(int8(x, *weight, bias, jnp.dtype(result)), expected)


@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (48, 512), (64, 516), (16, 4), (32, 1024), (208, 1532)])
def test_products_of_many_rows_in_int8_are_those_of_each_row(outputs: int, inputs: int) -> None:
    """Whole and partial groups of rows and of strips, with inputs in one block, in several and at their borders."""
    x = draw(130, 130, inputs).astype(np.float32)
    x[0], x[2], x[-1] = 1.0, -1.0, -1.0  # rounded to 127 and -127 everywhere
    values = np.random.default_rng(inputs).integers(-128, 128, (outputs, inputs)).astype(np.int8)
    values[0], values[-1] = 127, -128
    scale, bias = (np.random.default_rng(seed).random(outputs, np.float32) for seed in (1, 2))
    weight = packed(values), scale, bias
    expected = np.asarray(xla_int8(x, Int8Matrix(values, scale))) + bias
    numbers = (2, 3, 7, 40, 130)
    several = jax.jit(lambda x, *weight: [native.int8_product(x[:rows], *weight, F32) for rows in numbers])
    for rows, found in zip(numbers, several(x, *weight), strict=True):
        np.testing.assert_array_equal(found, expected[:rows], err_msg=f"{rows} rows")
    alone = [int8_product(row[None], *weight, F32) for row in x]
    np.testing.assert_array_equal(np.concatenate(alone), expected)


@pytest.mark.parametrize(
    ("outputs", "inputs", "kind"),
    [
        (16, 64, "float32"),
        (48, 96, "bfloat16"),
        (208, 192, "float32"),
        (112, 7680, "bfloat16"),
        *full((16, 64, "bfloat16"), (48, 96, "float32"), (208, 192, "bfloat16"), (112, 7680, "float32")),
    ],
)
def test_products_in_int4_are_xlas(outputs: int, inputs: int, kind: str) -> None:
    """Bit for bit, in groups of 64 and of 32, with whole and partial groups of rows and of strips."""
    matrix = Int4Matrix.quantize(draw(inputs, outputs, inputs).astype(np.float32))
    x, bias, dtype = draw(1, 70, inputs).astype(kind), draw(2, outputs).astype(np.float32), jnp.dtype(kind)

    @partial(jit, static_argnums=(3, 4))
    def products(
        x: jax.Array, weight: Any, bias: jax.Array, backend: Backend, numbers: tuple[int, ...]
    ) -> list[list[jax.Array]]:
        return [[product(x[:rows], weight, added, dtype, backend) for added in (None, bias)] for rows in numbers]

    (expected,) = jax.tree.map(np.asarray, products(x, jax.tree.map(np.copy, matrix), bias, XLA, (len(x),)))
    numbers = (1, 2, 3, 5, 8, 13, 32, 70)
    for rows, found in zip(numbers, products(x, packing.pack_param(matrix), bias, CPU, numbers), strict=True):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other[:rows], err_msg=f"{rows} rows")


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 4), (48, 260), (32, 16400)])
def test_a_packed_matrix_has_its_elements_by_strip_and_group(outputs: int, inputs: int, dtype: str) -> None:
    matrix = np.random.default_rng(inputs).integers(-128, 128, (outputs, inputs)).astype(dtype)
    shape = packing.packed_shape(matrix.shape, jnp.dtype(dtype))
    packed = packing.pack(matrix.copy())
    assert (packed.shape, packed.dtype) == (shape.shape, shape.dtype)
    group = 4 // matrix.itemsize
    expected = matrix.reshape(outputs // 16, 16, inputs // group, group).transpose(0, 2, 1, 3)
    expected = (expected.astype(np.int16) + 128).astype(np.uint8) if dtype == "int8" else expected
    np.testing.assert_array_equal(packed, expected)


@pytest.mark.parametrize(("count", "inputs"), [(1, 16), (3, 48)])
def test_packed_gates_have_strips_of_both(count: int, inputs: int) -> None:
    weight = np.random.default_rng(inputs).normal(size=(count, inputs, 2 * inputs)).astype(np.float32)
    packed = packing.pack_gates(weight.copy())
    assert packed.shape == packing.packed_gates_shape(weight.shape)
    for strip in range(inputs // 16):
        of_strip = slice(16 * strip, 16 * strip + 16)
        both = [weight[:, :, of_strip], weight[:, :, inputs:][:, :, of_strip]]
        np.testing.assert_array_equal(packed[:, strip], np.concatenate(both, axis=2))


@pytest.mark.parametrize(("shape", "dtype"), [((15, 8), "int8"), ((16, 6), "int8"), ((16, 3), "bfloat16")])
def test_a_matrix_of_partial_strips_or_groups_is_not_packed(shape: tuple[int, int], dtype: str) -> None:
    assert not packing.can_pack(shape, jnp.dtype(dtype))


EACH_WAY = st.sampled_from(native.possible_products() or tuple(native.Products))


@given(seed=SEEDS, rows=ROWS, outputs=OUTPUTS, inputs=INPUTS, has_bias=st.booleans(), products=EACH_WAY)
@examples(6, sweep=20)
def test_products_in_bfloat16_are_summed_in_float32(
    seed: int, rows: int, outputs: int, inputs: int, has_bias: bool, products: native.Products
) -> None:
    x, weight = (draw(seed + i, n, inputs).astype("bfloat16") for i, n in enumerate((rows, outputs)))
    bias = draw(seed + 2, outputs).astype(np.float32) if has_bias else None
    wide = x.astype(np.float64), weight.astype(np.float64)
    expected = wide[0] @ wide[1].T + (0 if bias is None else np.asarray(bias, np.float64))
    sizes = np.abs(wide[0]) @ np.abs(wide[1]).T + 1e-30
    actual = bf16(x, weight, bias, F32, products)
    assert np.max(np.abs(actual - expected) / (sizes + np.abs(expected))) < 1e-6
    rounded = bf16(x, weight, bias, jnp.dtype("bfloat16"), products)
    np.testing.assert_array_equal(rounded, actual.astype("bfloat16"))


def test_results_are_rounded_to_the_nearest_bfloat16() -> None:
    kept = [0x3F800000, 0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0xBF808000, 0x7F7F8000, 0x7F7F7FFF]
    special = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x7FC00000, 0x00000000, 0x80000000, 0x00800000]
    bias = np.array(kept + special, np.uint32).view(np.float32)
    nothing = np.zeros((1, 16), "bfloat16"), np.zeros((16, 16), "bfloat16")
    rounded = bf16(*nothing, bias, jnp.dtype("bfloat16"))[0]
    with np.errstate(invalid="ignore"):
        nearest = bias.astype("bfloat16")
    np.testing.assert_array_equal(rounded.astype(np.float32), nearest.astype(np.float32))


def test_products_that_a_processor_lacks_are_refused() -> None:
    missing = set(native.Products) - set(native.possible_products())
    nothing = np.zeros((1, 16), "bfloat16"), np.zeros((16, 16), "bfloat16")
    for products in missing:
        with pytest.raises(ValueError, match="this processor has no pairs products"):
            bf16(*nothing, None, F32, products)
    assert native.chosen_products() == native.possible_products()[0]


def block_inputs(seed: int, tokens: tuple[int, ...], blocks: int, size: int, kind: str) -> list[np.ndarray]:
    """Returns the inputs of `recurrent_block_reference` but the positions, rounded to their dtypes.

    `tokens` has the number of rows and, for a chunk, of tokens per row.
    """
    rng, width = np.random.default_rng(seed), blocks * size
    shapes = ((*tokens, 2 * width), (4, width), (width,), (blocks, size, 2 * size), (blocks, 2 * size))
    xy, *weights = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    a_param = rng.choice([-11.0, -6.5, -2.0, 2.5], width).astype(np.float32)
    conv, h = rng.normal(size=(3, tokens[0], width)), rng.normal(size=(tokens[0], width)).astype(np.float32)
    xy, conv = (x.astype(kind).astype(np.float32) for x in (xy, conv))
    return [xy, *weights, a_param, conv, h]


def recurrent_step(inputs: list[np.ndarray], positions: np.ndarray, kind: str) -> list[np.ndarray]:
    return run_block(step, inputs, positions, kind)


def recurrent_chunk(inputs: list[np.ndarray], positions: np.ndarray, kind: str, every: int) -> list[np.ndarray]:
    return run_block(chunk, inputs, positions, kind, every)


def run_block(
    call: Callable[..., Any], inputs: list[np.ndarray], positions: np.ndarray, kind: str, *options: int
) -> list[np.ndarray]:
    xy, weight, bias, gates, gate_bias, a_param, conv, h = inputs
    weights = RecurrentWeights(weight, bias, PackedGates(packing.pack_gates(gates.copy())), gate_bias, a_param)
    block = RecurrentInputs(weights, conv.astype(kind), h.astype(np.float32), positions)
    outputs = call(xy.astype(kind), block, *options)
    return [np.asarray(x, np.float64) for x in outputs]


@given(seed=SEEDS, blocks=st.sampled_from([1, 3]), size=st.sampled_from([16, 32, 64]), kind=TYPES, data=st.data())
@examples(5, sweep=15)
def test_a_recurrent_step_equals_float64(seed: int, blocks: int, size: int, kind: str, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 100]), min_size=1, max_size=12))
    positions, inputs = np.array(places, np.int32), block_inputs(seed, (len(places),), blocks, size, kind)
    out, conv, h = recurrent_step(inputs, positions, kind)
    xy, *rest = inputs
    expected, expected_conv, expected_h = recurrent_block_reference(xy[:, None], *rest, positions[:, None])
    live = positions >= 0
    np.testing.assert_array_equal(conv, expected_conv)
    np.testing.assert_allclose(h, expected_h, rtol=2e-5, atol=2e-5)
    rounding = 2e-5 if kind == "float32" else 1e-2
    np.testing.assert_allclose(out[live], expected[live, 0], rtol=rounding, atol=rounding)
    np.testing.assert_array_equal(h[~live], inputs[-1][~live])
    last = [inputs[0][-1:], *inputs[1:6], inputs[6][:, -1:], inputs[7][-1:]]
    alone = recurrent_step(last, positions[-1:], kind)
    for one, whole in zip(alone, (out[-1:], conv[:, -1:], h[-1:]), strict=True):
        np.testing.assert_array_equal(one, whole)


def chunk_positions(data: st.DataObject, steps: int) -> np.ndarray:
    """Draws positions of a chunk of `steps` tokens for two rows, whose padding comes last."""
    lengths = np.array([[data.draw(st.integers(0, steps))] for _ in range(2)])
    starts = np.array([[data.draw(st.sampled_from([0, 1, 2, 100]))] for _ in range(2)])
    return np.where(np.arange(steps) < lengths, starts + np.arange(steps), -1).astype(np.int32)


@given(seed=SEEDS, kind=TYPES, data=st.data())
@examples(5, sweep=15)
def test_a_recurrent_chunk_has_the_bits_of_its_steps(seed: int, kind: str, data: st.DataObject) -> None:
    """Those are compared with float64 above."""
    positions, every = chunk_positions(data, steps=12), 4
    xy, *weights, conv, h = block_inputs(seed, positions.shape, 2, 16, kind)
    whole, *states, kept_conv, kept_h = recurrent_chunk([xy, *weights, conv, h], positions, kind, every)
    for t in range(positions.shape[1]):
        out, conv, h = recurrent_step([xy[:, t], *weights, conv, h], positions[:, t], kind)
        np.testing.assert_array_equal(whole[:, t], out)
        if (t + 1) % every == 0:
            np.testing.assert_array_equal(kept_conv[:, t // every], np.moveaxis(conv, 0, 1))
            np.testing.assert_array_equal(kept_h[:, t // every], h)
    for state, last in zip(states, (conv, h), strict=True):
        np.testing.assert_array_equal(state, last)


@given(seed=SEEDS, rows=ROWS, keep=st.integers(1, 40), products=EACH_WAY)
@examples(5, sweep=15)
def test_a_row_does_not_depend_on_the_rows_beside_it(
    seed: int, rows: int, keep: int, products: native.Products
) -> None:
    x, weight = (draw(seed + i, n, 600).astype("bfloat16") for i, n in enumerate((rows, 80)))
    some = slice(max(rows - keep, 0), rows)
    np.testing.assert_array_equal(
        bf16(x, weight, None, F32, products)[some], bf16(x[some], weight, None, F32, products)
    )


@given(seed=SEEDS, heads=st.sampled_from([1, 2, 4, 6, 10]), size=st.sampled_from([16, 48, 128]), data=st.data())
@examples(4, sweep=10)
def test_attention_equals_the_reference(seed: int, heads: int, size: int, data: st.DataObject) -> None:
    """The last ring has no row."""
    rows, window = 3, 40
    places = data.draw(st.lists(st.integers(-1, 100), min_size=rows, max_size=rows))
    rng = np.random.default_rng(seed)
    qkv = rng.normal(size=(rows, heads + 2, size)).astype("bfloat16")
    rings = tuple(rng.normal(size=(rows + 1, window, size)).astype("bfloat16") for _ in "kv")
    q, k, v, positions = qkv[:, :-2], qkv[:, -2], qkv[:, -1], np.array(places, np.int32)
    expected, *written = window_attention_reference(
        q[:, None], k[:, None], v[:, None], *(ring[:rows].astype(np.float64) for ring in rings), positions[:, None]
    )
    out, new = attend(q, k, v, rings, positions, CPU)
    live = positions >= 0
    np.testing.assert_allclose(np.asarray(out)[live], expected[live, 0], rtol=1e-5, atol=1e-5)
    for ring, old, wanted in zip(new, rings, written, strict=True):
        np.testing.assert_array_equal(np.asarray(ring)[:rows].astype(np.float64), wanted)
        np.testing.assert_array_equal(np.asarray(ring)[rows:], old[rows:])


def test_attention_writes_into_donated_rings() -> None:
    ring = np.ones((2, 16, 16), "bfloat16")
    rings = jax.jit(lambda: (ring + 1, ring - 1))()
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(rings)]
    q, k = np.ones((2, 3, 16), "bfloat16"), np.ones((2, 16), "bfloat16")
    step = jax.jit(decode_attention, static_argnums=5, donate_argnums=3)
    _, new = step(q, k, k, rings, np.array([5, 40], np.int32), CPU)
    assert [x.unsafe_buffer_pointer() for x in jax.tree.leaves(new)] == places


@given(
    seed=SEEDS,
    shape=st.sampled_from([(1, 48, 40), (3, 16, 5), (10, 16, 40)]),
    products=EACH_WAY,
    data=st.data(),
    cut=st.sampled_from([1, 7]),
)
@examples(8, sweep=20)
def test_attention_of_a_chunk_equals_the_reference_wherever_it_is_cut(
    seed: int, shape: tuple[int, int, int], products: native.Products, data: st.DataObject, cut: int
) -> None:
    heads, size, window = shape
    positions, rng = chunk_positions(data, steps=12), np.random.default_rng(seed)
    qkv = rng.normal(size=(*positions.shape, heads + 2, size)).astype("bfloat16")
    rings = tuple(rng.normal(size=(2, window, size)).astype("bfloat16") for _ in "kv")
    q, k, v = qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]
    whole = np.asarray(attend_chunk(q, k, v, *rings, positions, products), np.float64)
    expected, *_ = window_attention_reference(q, k, v, *rings, positions)
    live = positions >= 0
    np.testing.assert_allclose(whole[live], expected[live], rtol=1e-2, atol=2e-2)  # weights in bfloat16
    assert not whole[~live].any()
    pieces = []
    for part in (slice(cut), slice(cut, None)):
        inputs = q[:, part], k[:, part], v[:, part], *rings, positions[:, part]
        pieces.append(attend_chunk(*inputs, products))
        rings = tuple(ring.astype("bfloat16") for ring in window_attention_reference(*inputs)[1:])
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def drawn_output_layer(seed: int, rows: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Draws activations and a packed matrix of logits; some outputs are equal."""
    x, weight = draw(seed, rows, 48), draw(seed + 1, 208, 48).astype(np.float32)
    weight[[3, 70, 207]] = weight[100]
    if kind == "bfloat16":
        return x.astype(kind), packed(weight.astype(kind)), None
    matrix = quantize_on_host(weight)
    return x.astype(np.float32), packed(matrix.values), matrix.scale


int8_gated_mlp = jax.jit(native.int8_gated_mlp)
bf16_gated_mlp = jax.jit(native.bf16_gated_mlp, static_argnums=5)
rms_norm = jax.jit(native.rms_norm, static_argnums=2)
add_rms_norm = jax.jit(native.add_rms_norm, static_argnums=3)

CAPS = st.sampled_from([None, 30.0, 0.5])
logits_of = jax.jit(native.logits, static_argnums=(3, 4))
argmax_of = jax.jit(native.argmax, static_argnums=(3, 4))
first_largest = jax.jit(partial(jax.lax.top_k, k=1))


@given(seed=SEEDS, rows=ROWS, kind=TYPES, cap=CAPS, products=EACH_WAY)
@examples(5, sweep=15)
def test_logits_are_capped_products(
    seed: int, rows: int, kind: str, cap: float | None, products: native.Products
) -> None:
    x, values, scale = drawn_output_layer(seed, rows, kind)
    plain = bf16_product(x, values, None, F32, products) if scale is None else int8_product(x, values, scale, None, F32)
    actual = np.asarray(logits_of(x, values, scale, cap, products))
    wide = np.asarray(plain, np.float64)
    expected = wide if cap is None else cap * np.tanh(wide / cap)
    np.testing.assert_allclose(actual, expected, rtol=0.0 if cap is None else 1e-6)
    np.testing.assert_array_equal(logits_of(x[-1:], values, scale, cap, products), actual[-1:])


@given(seed=SEEDS, rows=ROWS, kind=TYPES, cap=CAPS, products=EACH_WAY)
@examples(5, sweep=15)
def test_argmax_is_the_first_of_the_largest_logits(
    seed: int, rows: int, kind: str, cap: float | None, products: native.Products
) -> None:
    """Among equal logits, also those that the cap makes equal, and with logits that are not numbers."""
    x, values, scale = drawn_output_layer(seed, rows, kind)
    x[0] *= x.dtype.type(1e4)
    x[-1, 7] = np.random.default_rng(seed).choice([1.0, *BROKEN])
    largest, places = first_largest(logits_of(x, values, scale, cap, products))
    tokens, best = argmax_of(x, values, scale, cap, products)
    np.testing.assert_array_equal(tokens, np.asarray(places)[:, 0])
    np.testing.assert_array_equal(best, np.asarray(largest)[:, 0])


@given(seed=SEEDS, rows=ROWS, width=st.sampled_from([16, 48, 768]))
@examples(5, sweep=15)
def test_a_norm_equals_float64(seed: int, rows: int, width: int) -> None:
    x, y = (draw(seed + i, rows, width).astype("bfloat16") for i in range(2))
    scale, eps = draw(seed + 2, width).astype(np.float32), 1e-6
    total, normed = map(np.asarray, add_rms_norm(x, y, scale, eps))
    wide = x.astype(np.float32) + y.astype(np.float32)
    np.testing.assert_array_equal(total, wide.astype("bfloat16"))
    wide = total.astype(np.float64)
    expected = wide / np.sqrt(np.mean(wide**2, axis=1, keepdims=True) + eps) * (1.0 + np.asarray(scale, np.float64))
    np.testing.assert_allclose(np.asarray(normed, np.float64), expected, rtol=2.0**-8, atol=1e-30)
    np.testing.assert_array_equal(rms_norm(total, scale, eps), normed)
    np.testing.assert_array_equal(rms_norm(total[-1:], scale, eps), normed[-1:])


def test_a_norm_of_a_row_that_is_not_of_numbers_has_none() -> None:
    x = np.ones((3, 32), "bfloat16")
    x[1, 5] = np.nan
    normed = np.asarray(rms_norm(x, np.zeros(32, np.float32), 1e-6), np.float32)
    assert np.isnan(normed[1]).all()
    assert (normed[[0, 2]] == 1.0).all()


BROKEN = [np.nan, -np.nan, np.inf, -np.inf]


@given(seed=SEEDS, rows=ROWS, width=st.sampled_from([16, 64, 144]), products=EACH_WAY)
@examples(5, sweep=15)
def test_a_gated_mlp_in_bfloat16_equals_float64(seed: int, rows: int, width: int, products: native.Products) -> None:
    rng = np.random.default_rng(seed)
    x, gate_up, down = (
        (rng.normal(size=shape) * size).astype("bfloat16")
        for shape, size in (((rows, 48), 1.0), ((2 * width, 48), 0.3), ((48, width), 0.3))
    )
    biases = [rng.normal(size=n).astype(np.float32) for n in (2 * width, 48)]
    actual = np.asarray(bf16_gated_mlp(x, packed(gate_up), biases[0], packed(down), biases[1], products), np.float64)
    expected = gated_mlp_reference(x, gate_up, biases[0], down, biases[1])
    assert np.abs(actual - expected).max() <= 0.01 * np.abs(expected).max()  # both roundings to bfloat16
    alone = bf16_gated_mlp(x[-1:], packed(gate_up), biases[0], packed(down), biases[1], products)
    np.testing.assert_array_equal(np.asarray(alone, np.float64), actual[-1:])


def weight_in(dtype: str, seed: int, outputs: int, inputs: int) -> Any:
    """Draws a packed matrix."""
    values = np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)
    matrices = {
        "bfloat16": lambda: values.astype("bfloat16"),
        "int8": lambda: quantize_on_host(values),
        "int4": lambda: Int4Matrix.quantize(values),
    }
    return packing.pack_param(matrices[dtype]())


QUANTIZED = st.sampled_from([("int8", 16), ("int8", 64), ("int8", 144), ("int4", 32), ("int4", 64), ("int4", 160)])


@given(seed=SEEDS, rows=ROWS, quantized=QUANTIZED, kind=TYPES)
@examples(8, sweep=24)
def test_a_quantized_gated_mlp_is_its_products(seed: int, rows: int, quantized: tuple[str, int], kind: str) -> None:
    dtype, width = quantized
    x = draw(seed, rows, 96).astype(kind)
    gate_up, down = weight_in(dtype, seed, 2 * width, 96), weight_in(dtype, seed + 1, 96, width)
    biases = [draw(seed, n).astype(np.float32) for n in (2 * width, 96)]

    @jit
    def products(x: jax.Array, weight: Any, bias: jax.Array) -> jax.Array:
        return product(x, weight, bias, F32, CPU)

    mlp = jit(lambda x, *weights: gated_mlp(x, *weights, CPU))
    actual = np.asarray(mlp(x, gate_up, biases[0], down, biases[1]), np.float64)
    gate, up = np.split(np.asarray(products(x, gate_up, biases[0]), np.float64), 2, axis=1)
    gelu = 0.5 * gate * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (gate + 0.044715 * gate**3)))
    expected = np.asarray(products((gelu * up).astype(kind), down, biases[1]), np.float64)
    np.testing.assert_allclose(actual, expected, atol=0.02 * np.abs(expected).max())  # a rounding may differ
    alone = mlp(x[-1:], gate_up, biases[0], down, biases[1])
    np.testing.assert_array_equal(np.asarray(alone, np.float64), actual[-1:])


@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        *((call, dtype) for call in ("product", "gated_mlp") for dtype in ("bfloat16", "int8", "int4")),
        *((call, dtype) for call in ("logits", "argmax") for dtype in ("bfloat16", "int8")),
    ],
)
def test_equal_rows_at_the_end_have_the_results_of_one(call: str, dtype: str) -> None:
    """As the padding of a prompt has, which is computed once."""
    weights = weight_in(dtype, 1, 128, 64), weight_in(dtype, 2, 64, 64)
    biases = [draw(seed, outputs).astype(np.float32) for seed, outputs in ((3, 128), (4, 64))]
    run: Callable[..., jax.Array] = {
        "product": lambda x, w, b: product(x, w[0], b[0], x.dtype, CPU),
        "gated_mlp": lambda x, w, b: gated_mlp(x, w[0], b[0], w[1], b[1], CPU),
        "logits": lambda x, w, b: logits(x, w[0], 30.0, CPU),
        "argmax": lambda x, w, b: argmax(x, w[0], 30.0, CPU),
    }[call]
    x, cases = np.random.default_rng(5).normal(size=(7, 64)).astype("bfloat16"), [(0, 4), (1, 2), (6, 11)]
    found = jit(lambda several, *inputs: [run(x, *inputs) for x in several])(
        [x[rows] for n, equal in cases for rows in ([*range(n + 1)], [*range(n), *[n] * equal])], weights, biases
    )
    for (n, equal), expected, padded in zip(cases, found[::2], found[1::2], strict=True):
        np.testing.assert_array_equal(padded, np.asarray(expected)[[*range(n), *[n] * equal]], err_msg=f"{n}, {equal}")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_of_numbers_has_no_gated_mlp_in_int8(value: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 48)).astype(np.float32)
    gate_up, down = (quantize_on_host(rng.normal(size=shape).astype("f4")) for shape in ((64, 48), (48, 32)))
    weights = (
        packed(gate_up.values),
        gate_up.scale,
        np.ones(64, "f4"),
        packed(down.values),
        down.scale,
        np.ones(48, "f4"),
    )
    clean = np.asarray(int8_gated_mlp(x, *weights))
    x[2, 7] = value
    broken = np.asarray(int8_gated_mlp(x, *weights))
    assert np.isnan(broken[2]).all()
    np.testing.assert_array_equal(np.delete(broken, 2, 0), np.delete(clean, 2, 0))


def places(inputs: int) -> list[int]:
    """Returns the indices of the first and last elements, of some in the middle, and of those at ends of registers."""
    return sorted({0, inputs // 2, min(15, inputs - 1), max(inputs // 16 * 16 - 1, 0), inputs - 1})


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("inputs", [8, 64, 100])
def test_a_row_that_is_not_of_numbers_has_no_products_in_int8(inputs: int, kind: str) -> None:
    """A row with a non-finite number gives NaN, as zeros would give meaningless tokens; other rows keep their bits."""
    weight = quantize_on_host(draw(inputs, 48, inputs).astype(np.float32))
    bias, good = np.ones(48, np.float32), draw(5, 5, inputs).astype(kind)
    for rows in (1, 5):
        clean = int8(good[:rows], *weight, bias)
        for row, place, value in ((row, place, v) for row in {0, rows - 1} for place in places(inputs) for v in BROKEN):
            x = good.copy()
            x[row, place] = value
            actual = int8(x[:rows], *weight, bias)
            assert np.isnan(actual[row]).all(), (row, place, value)
            np.testing.assert_array_equal(np.delete(actual, row, 0), np.delete(clean, row, 0))
            np.testing.assert_array_equal(actual, (np.asarray(xla_int8(x, weight)) + bias)[:rows])


@pytest.mark.parametrize("inputs", [8, 64, 100])
def test_a_product_in_int8_beyond_float32_is_xlas(inputs: int) -> None:
    """Rows of the largest and smallest numbers, whose sums overflow in both directions."""
    largest = np.float32(np.finfo(np.float32).max)
    x = np.stack([np.full(inputs, v, np.float32) for v in (largest, -largest, 1e38, 1e-30, 1e-38, 1e-45, 0.0)])
    values = np.array([[127] * inputs, *[[-127] * inputs] * 14, [0] * inputs], np.int8)
    weight = Int8Matrix(values, np.full(16, 9, np.float32))
    np.testing.assert_array_equal(int8(x, *weight, None), np.asarray(xla_int8(x, weight)))


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_a_row_that_is_not_of_numbers_has_no_products_in_bfloat16(rows: int) -> None:
    """A NaN makes all of a row's outputs NaN, an infinity all infinite or NaN; other rows keep their bits."""
    rng = np.random.default_rng(rows)
    weight, good = (rng.normal(size=(n, 100)).astype("bfloat16") for n in (48, rows))
    clean = bf16(good, weight, None)
    for row, place, value in ((row, place, v) for row in {0, rows - 1} for place in places(96) for v in BROKEN):
        x = good.copy()
        x[row, place] = value
        actual = bf16(x, weight, None)
        assert (np.isnan(actual[row]) if np.isnan(value) else ~np.isfinite(actual[row])).all()
        np.testing.assert_array_equal(np.delete(actual, row, 0), np.delete(clean, row, 0))


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("place", [0, 17, 31])
def test_a_token_that_is_not_of_numbers_breaks_its_channel_of_a_recurrent_chunk(place: int, value: float) -> None:
    """From that token on; a NaN also breaks all channels of its block of gates. Other rows keep their bits."""
    positions = np.tile(np.arange(8, dtype=np.int32), (3, 1))
    xy, *rest = block_inputs(place, positions.shape, 2, 32, "float32")
    clean, *_ = recurrent_chunk([xy, *rest], positions, "float32", 4)
    broken = xy.copy()
    broken[1, 5, place] = value
    out, _, h, *_ = recurrent_chunk([broken, *rest], positions, "float32", 4)
    assert not np.isfinite(out[1, 5:, place]).any()
    assert not np.isfinite(h[1, place])
    if np.isnan(value):
        assert np.isnan(out[1, 5:, :32]).all()
    np.testing.assert_array_equal(out[[0, 2]], clean[[0, 2]])
    np.testing.assert_array_equal(out[1, :5], clean[1, :5])


@pytest.mark.parametrize("value", [*BROKEN, 3e38, -3e38])
@pytest.mark.parametrize("part", ["q", "k", "v", "ring k", "ring v"])
@pytest.mark.parametrize("filled", [1, 17, 40])
def test_attention_is_finite_where_xlas_is(part: str, value: float, filled: int) -> None:
    """Also with scores so far apart that only one weight is left. Other rows keep their bits.

    A row of scores that are all -inf is NaN here. The mask of the XLA softmax is finite, so it averages masked values.
    """
    rng = np.random.default_rng(filled)
    arrays = {"q": (3, 2, 16), "k": (3, 16), "v": (3, 16), "ring k": (3, 40, 16), "ring v": (3, 40, 16)}
    good = {name: rng.normal(size=shape) for name, shape in arrays.items()}
    good["q"][1] = good["k"][1] = good["ring k"][1] = 1.0

    def attended(inputs: dict[str, np.ndarray], backend: Backend) -> np.ndarray:
        q, k, v, ring_k, ring_v = (x.astype("bfloat16") for x in inputs.values())
        return np.asarray(attend(q, k, v, (ring_k, ring_v), np.full(3, filled, np.int32), backend)[0])

    clean = attended(good, CPU)
    for place in (0, filled // 2, filled - 1):
        bad = {name: x.copy() for name, x in good.items()}
        bad[part][(1, place, 3) if part.startswith("ring") else (1, ..., 3)] = value
        actual, expected = attended(bad, CPU), attended(bad, XLA)
        if part == "q" and value == -np.inf:
            assert np.isnan(actual[1]).all()
        else:
            np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
        np.testing.assert_array_equal(np.delete(actual, 1, 0), np.delete(clean, 1, 0))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx avx2 fma", ("avx2", "fma")),
        ("fpu avx2 fma avx512f avx512_bf16 avx512_vnni", ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16")),
        ("fpu avx512_vnni amx_bf16 amx_tile amx_int8", ("avx512_vnni", "amx_int8", "amx_bf16")),
    ],
)
def test_processors_differ_by_their_instruction_sets(flags: str, expected: tuple[str, ...]) -> None:
    others = "flags\t\t: avx2 amx_int8\n"
    cpuinfo = f"processor\t: 0\nvmx flags\t: avx2\nflags\t\t: {flags}\n\n{others}"
    assert native.named_instruction_sets(cpuinfo) == expected
    assert native.named_instruction_sets("Features\t: fp asimd\n") == ()


def test_kernels_compiled_from_other_code_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "CALLS_VERSION", 0)
    assert "compiled from other sources" in library.why_unavailable.__wrapped__()


def test_it_is_there_when_a_compiler_is() -> None:
    """The tests above are not skipped by mistake: an editable install compiles next to the source."""
    folder = Path(native.__file__).parent
    assert find_spec("jaxlib") is not None
    assert list(folder.glob("_cpu*.so"))
