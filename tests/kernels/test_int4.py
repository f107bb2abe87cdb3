"""Matrices in 4 bits: their products against float64, bits that depend on the row alone, and the search of scales."""

from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from roost.engine.devices.platform import CPU_OPTIONS
from roost.kernels.matrices import (
    Int4Matrix,
    gather_rows,
    is_quantized,
    pack_param,
    pack_shapes,
    table_dtype,
    takes_inputs,
)
from roost.kernels.matrices.int4 import group_size, round_to_int4, search_scales
from roost.kernels.products import product as dot
from sweeps import full, swept

jit = partial(jax.jit, compiler_options=CPU_OPTIONS)
jit_dot, jit_dots = jit(dot), jit(lambda several, weight: [dot(x, weight) for x in several])

MATRICES = hnp.arrays(np.float32, (3, 96), elements=st.floats(-1024, 1024, width=32))


def quantized(outputs: int, inputs: int) -> Int4Matrix:
    weights = np.random.default_rng([outputs, inputs]).normal(size=(outputs, inputs))
    return Int4Matrix.quantize(weights.astype(np.float32))


def activations(rows: int, inputs: int, dtype: str = "float32") -> np.ndarray:
    """Draws activations with a few large channels, as models have them."""
    rng = np.random.default_rng([rows, inputs])
    return (rng.normal(size=(rows, inputs)) * np.exp(rng.normal(size=inputs))).astype(dtype)


def dequantized(matrix: Int4Matrix) -> np.ndarray:
    """Returns the matrix in float64, read from its bytes."""
    scale = np.asarray(matrix.scale, np.float64)
    return (integers(matrix).reshape(*scale.shape, -1) * scale[..., None]).reshape(matrix.shape)


def integers(matrix: Int4Matrix) -> np.ndarray:
    """Returns the values of a matrix, read from its bytes."""
    halves = np.asarray(matrix.values)
    return np.stack([halves & 15, halves >> 4], axis=-1).reshape(matrix.shape).astype(np.int64) - 8


@pytest.mark.parametrize(("inputs", "size"), [(64, 64), (96, 32), (192, 64), (2560, 64), (12288, 64)])
def test_the_largest_group_that_divides_the_inputs_is_taken(inputs: int, size: int) -> None:
    assert group_size(inputs) == size
    assert Int4Matrix.zeros(2, inputs).scale.shape == (2, inputs // size)
    assert not takes_inputs(inputs + 16)


def test_zeros_are_zeros_and_take_the_bytes_of_half_a_byte_each() -> None:
    zeros = Int4Matrix.zeros(4, 128)
    assert (zeros.shape, zeros.dtype) == ((4, 128), jnp.dtype("int4"))
    assert zeros.values.nbytes == 4 * 64
    assert not dequantized(zeros).any()
    assert is_quantized(zeros)


def test_the_embedding_beside_four_bits_is_in_eight() -> None:
    assert [table_dtype(jnp.dtype(name)).name for name in ("int4", "int8", "bfloat16")] == ["int8", "int8", "bfloat16"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((8, 768, 96), "float32"),
        ((3, 96, 7), "bfloat16"),
        *full(((8, 768, 96), "bfloat16"), ((3, 96, 7), "float32")),
        *full(((64, 2304, 64), "float32"), ((64, 2304, 64), "bfloat16")),
        *full(((1, 64, 16), "float32"), ((1, 64, 16), "bfloat16")),
    ],
)
def test_a_product_is_that_of_a_float64_reference(shape: tuple[int, int, int], dtype: str) -> None:
    """The reference takes the same int8 activations, so that only the rounding of float32 sums is left."""
    rows, inputs, outputs = shape
    x, weight = activations(rows, inputs, dtype), quantized(outputs, inputs)
    wide = np.asarray(x, np.float32)
    largest = np.abs(wide).max(axis=1, keepdims=True)
    exact = np.rint(wide * (np.float32(127) / largest)).astype(np.float64) * (largest * np.float32(1 / 127))
    expected = exact @ dequantized(weight).T
    bound = np.abs(exact) @ np.abs(dequantized(weight)).T
    assert (np.abs(np.asarray(jit_dot(x, weight)) - expected) <= 3e-6 * bound).all()


@pytest.mark.parametrize("inputs", [768, *full(96), *swept(64)])
def test_a_row_has_the_same_bits_in_any_batch(inputs: int) -> None:
    """Batches of all sizes, a single row, and a token in a prefill chunk."""
    x, weight = activations(64, inputs), quantized(96, inputs)
    expected = np.asarray(jit_dot(x, weight))
    several = [x[-size:] for size in (1, 2, 3, 8, 32)]
    several += [x.reshape(1, 64, inputs), x.reshape(4, 16, inputs), x[:, None]]
    for some, found in zip(several, jit_dots(several, weight), strict=True):
        rows = np.asarray(found).reshape(-1, 96)
        np.testing.assert_array_equal(rows, expected[-len(rows) :], err_msg=str(some.shape))


def test_groups_are_added_one_after_the_other_and_each_product_is_rounded() -> None:
    """The bits that native kernels have to have, computed here in NumPy's float32."""
    x, weight = activations(5, 768), quantized(32, 768)
    largest = np.abs(np.asarray(x)).max(axis=1, keepdims=True)
    values = np.rint(np.asarray(x) * (np.float32(127) / largest)).astype(np.int64)
    weights = integers(weight)
    total = np.zeros((5, 32), np.float32)
    for group, scale in enumerate(np.asarray(weight.scale, np.float32).T):
        some = slice(64 * group, 64 * group + 64)
        total += (values[:, some] @ weights[:, some].T).astype(np.float32) * scale
    np.testing.assert_array_equal(jit_dot(x, weight), total * (largest * np.float32(1 / 127)))


def test_not_a_number_in_a_row_reaches_its_outputs_alone() -> None:
    x, weight = activations(3, 64), quantized(16, 64)
    x[1, 5] = np.nan
    found = np.asarray(jit_dot(x, weight))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def test_rows_are_those_of_the_matrix() -> None:
    weight = quantized(16, 96)
    found = jax.jit(gather_rows, static_argnums=2)(weight, np.array([[3, 0], [15, 3]], np.int32), jnp.dtype("float32"))
    np.testing.assert_array_equal(found, dequantized(weight)[[[3, 0], [15, 3]]].astype(np.float32))


def test_a_packed_matrix_has_its_values_by_strip_and_half() -> None:
    """On any processor: a register's lower halves are the first four inputs of sixteen outputs, then the other four."""
    matrix = Int4Matrix.quantize(np.random.default_rng(0).normal(size=(48, 96)).astype(np.float32))
    shapes = pack_shapes(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), matrix))
    expected, scale = integers(matrix) + 8, matrix.scale.copy()
    packed = pack_param(matrix)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), packed) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    by_strip = expected.reshape(3, 16, 12, 2, 4).transpose(0, 2, 1, 3, 4)
    np.testing.assert_array_equal(packed.values & 15, by_strip[..., 0, :])
    np.testing.assert_array_equal(packed.values >> 4, by_strip[..., 1, :])
    np.testing.assert_array_equal(packed.scale, scale.reshape(3, 16, 3).transpose(0, 2, 1))


def test_a_matrix_without_whole_strips_stays_as_it_is() -> None:
    matrix = Int4Matrix.quantize(np.ones((24, 64), np.float32))
    assert pack_param(matrix) is matrix


def test_a_matrix_is_quantised_in_pieces_of_any_size() -> None:
    """A matrix larger than a piece, whose last piece is smaller than the others; and one row alone."""
    matrix = np.random.default_rng(0).normal(size=(1100, 192)).astype(jnp.bfloat16)
    whole = Int4Matrix.quantize(matrix)
    for rows in (slice(0, 1), slice(339, 345), slice(1000, 1100)):
        for part, piece in zip(whole, Int4Matrix.quantize(matrix[rows]), strict=True):
            np.testing.assert_array_equal(part[rows], piece)


@given(MATRICES)
def test_a_number_is_off_by_half_a_step_or_was_clipped(matrix: np.ndarray) -> None:
    found = Int4Matrix.quantize(matrix)
    step = np.abs(np.repeat(np.asarray(found.scale, np.float64), 32, axis=1))
    values = integers(found)
    is_inside = (values > -8) & (values < 7) & (step > 0)
    assert (np.abs(dequantized(found) - matrix)[is_inside] <= 0.501 * step[is_inside]).all()


@given(MATRICES)
def test_searched_scales_are_no_worse_than_the_largest_weight_over_minus_eight(matrix: np.ndarray) -> None:
    """Apart from the rounding of scales to float16."""
    groups = matrix.reshape(-1, 32)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]

    def error(scales: np.ndarray) -> np.ndarray:
        values = round_to_int4(groups, scales).astype(np.float64) - 8
        return np.linalg.norm(groups - values * scales.astype(np.float64)[:, None], axis=1)

    size = np.linalg.norm(groups.astype(np.float64), axis=1)
    assert (error(search_scales(groups)) <= error((largest / -8).astype(np.float16)) + 2e-3 * size + 1e-6).all()


def test_the_search_lowers_the_error_of_normal_weights() -> None:
    groups = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)

    def error(scales: np.ndarray) -> float:
        values = round_to_int4(groups, scales).astype(np.float64) - 8
        return float(((groups - values * scales.astype(np.float64)[:, None]) ** 2).mean())

    nearest = (np.abs(groups).max(axis=1) / 7).astype(np.float16)
    assert error(search_scales(groups)) < 0.75 * error(nearest)


def test_weights_too_small_for_a_scale_become_zeros_and_large_ones_stay_finite() -> None:
    tiny, huge = (np.full((1, 64), value, np.float32) for value in (1e-9, 1e9))
    assert not dequantized(Int4Matrix.quantize(tiny)).any()
    assert np.isfinite(dequantized(Int4Matrix.quantize(huge))).all()
