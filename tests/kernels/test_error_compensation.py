"""Quantisation for the inputs of a sample: its error of outputs beside rounding to nearest, and its rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.kernels.matrices import Int4Matrix
from roost.kernels.matrices.error_compensation import quantize_for_inputs


def sample(inputs: int) -> np.ndarray:
    """Draws inputs of which many go together, as activations do."""
    rng = np.random.default_rng(inputs)
    return (rng.normal(size=(2048, inputs // 4)) @ rng.normal(size=(inputs // 4, inputs))).astype(np.float32)


def moments_of(x: np.ndarray) -> np.ndarray:
    moments = x.T @ x / np.float32(len(x))
    return moments + 0.01 * np.diag(moments).mean() * np.eye(len(moments), dtype=np.float32)


def weights(outputs: int, inputs: int) -> np.ndarray:
    return np.random.default_rng([outputs, inputs]).normal(size=(outputs, inputs)).astype(np.float32)


@jax.jit
def all_rows(matrix: Int4Matrix) -> jax.Array:
    return matrix.rows(jnp.arange(len(matrix.values)))


def dequantized(matrix: Int4Matrix) -> np.ndarray:
    return np.asarray(all_rows(matrix))


def error(matrix: np.ndarray, quantized: Int4Matrix, x: np.ndarray) -> float:
    return float(np.square(x @ (matrix - dequantized(quantized)).T).mean())


@pytest.mark.parametrize("inputs", [64, 96, 320])
def test_outputs_are_closer_than_without_the_inputs(inputs: int) -> None:
    x, matrix = sample(inputs), weights(48, inputs)
    quantized = quantize_for_inputs(matrix, moments_of(x))
    assert error(matrix, quantized, x) <= 0.5 * error(matrix, Int4Matrix.quantize(matrix), x)


def test_shapes_are_those_of_every_matrix_in_4_bits() -> None:
    matrix = weights(16, 192)
    found, expected = quantize_for_inputs(matrix, moments_of(sample(192))), Int4Matrix.quantize(matrix)
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in expected]


def test_independent_inputs_leave_each_weight_near_its_nearest_value() -> None:
    """There is nothing that another weight could make up for."""
    matrix = weights(8, 128)
    quantized = quantize_for_inputs(matrix, np.eye(128, dtype=np.float32))
    step = np.abs(np.repeat(np.asarray(quantized.scale, np.float32), 64, axis=1))
    inside = np.abs(matrix) < 7 * step
    assert inside.mean() > 0.9
    assert (np.abs(dequantized(quantized) - matrix) <= 0.55 * step)[inside].all()


def test_zeros_stay_zeros() -> None:
    quantized = quantize_for_inputs(np.zeros((4, 64), np.float32), moments_of(sample(64)))
    assert not dequantized(quantized).any()
