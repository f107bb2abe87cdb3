"""Quantisation to 4 bits for the inputs that a matrix has on a sample (GPTQ, arXiv 2210.17323).

Weights are rounded one input after the other, the largest inputs first. Weights that are still to be rounded
compensate for the error of each, as much as their inputs correlate with its input. Scales are searched before, and
fitted to the rounded values in the end. Rows do not depend on each other.
"""

from typing import Any, Final

import numpy as np

from .int4 import OFFSET, Int4Matrix, group_size, pack_nibbles

type Numbers = np.ndarray[Any, np.dtype[np.float32]]

_STEPS: Final = np.linspace(5.5, 9.5, 17, dtype=np.float32)
"""Absolute values that the weight of the largest size in a group becomes in the candidates."""

_LARGEST: Final = float(np.finfo(np.float16).max)

_BLOCK: Final = 128
"""Number of inputs whose errors reach the inputs behind them together."""

_PIECE: Final = 2**22
"""Elements of the temporary arrays of rows that are worked on at a time."""


def quantize_for_inputs(matrix: Numbers, moments: Numbers) -> Int4Matrix:
    """Quantises a matrix so that the squared error of its outputs is small.

    Args:
      matrix: Weights `[O, I]`.
      moments: Mean of x xᵀ over a sample of inputs, `[I, I]`; positive definite.
    """
    squares = np.diag(moments)
    order = np.argsort(-squares, kind="stable")
    scales = _search_scales(matrix, squares)
    by_input = np.repeat(scales.astype(np.float32), matrix.shape[1] // scales.shape[1], axis=1)
    values = np.empty(matrix.shape, np.uint8)
    values[:, order] = _compensated(matrix[:, order].T, by_input[:, order].T, _factor(moments[np.ix_(order, order)])).T
    return Int4Matrix(pack_nibbles(values), _fitted_scales(matrix, values, moments, scales.shape[1]))


def _search_scales(matrix: Numbers, weights: Numbers) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Returns the scale of each group that has the least error of some candidates, weighted by the inputs' squares."""
    size = group_size(matrix.shape[1])
    scales = np.empty((len(matrix), matrix.shape[1] // size), np.float16)
    step = max(_PIECE // matrix.shape[1], 1)
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        groups = matrix[rows].reshape(-1, scales.shape[1], size)
        scales[rows] = _best_scales(groups, weights.reshape(-1, size))
    return scales


def _best_scales(groups: Numbers, weights: Numbers) -> Numbers:
    high, low = groups.max(axis=-1), groups.min(axis=-1)
    extreme = np.where(high > -low, high, low)
    best, scales = np.zeros_like(extreme), np.zeros_like(extreme)
    for step in (*_STEPS, *-_STEPS):
        factors = np.divide(step, extreme, out=np.zeros_like(extreme), where=np.abs(extreme) > 1e-30)
        values = np.clip(np.rint(groups * factors[..., None]), -8, 7)
        along, square = ((values * weights * other).sum(axis=-1) for other in (groups, values))
        scale = np.divide(along, square, out=np.zeros_like(along), where=square > 0)
        is_better = along * scale > best
        best[is_better], scales[is_better] = (along * scale)[is_better], scale[is_better]
    return np.clip(scales, -_LARGEST, _LARGEST)


def _factor(moments: Numbers) -> Numbers:
    """Returns the upper Cholesky factor of the inverse: its rows say how later weights make up for an error."""
    return np.linalg.cholesky(np.linalg.inv(moments.astype(np.float64))).T.astype(np.float32)


def _compensated(weights: Numbers, scales: Numbers, factor: Numbers) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Returns values of weights, with 8 added, rounded from the first input to the last.

    Args:
      weights: Weights `[I, O]`.
      scales: Scale of each weight.
      factor: Result of `_factor`, for inputs in this order.
    """
    left, values = np.array(weights, order="C"), np.empty(weights.shape, np.uint8)
    inverse = np.divide(1.0, scales, out=np.zeros(scales.shape, np.float32), where=scales != 0)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for i in range(start, stop):
            rounded = np.clip(np.rint(left[i] * inverse[i]), -8, 7)
            values[i] = rounded + OFFSET
            errors[i - start] = (left[i] - rounded * scales[i]) / factor[i, i]
            left[i + 1 : stop] -= factor[i, i + 1 : stop, None] * errors[i - start]
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return values


def _fitted_scales(
    matrix: Numbers, values: np.ndarray[Any, np.dtype[np.uint8]], moments: Numbers, groups: int
) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Returns the scales of a matrix's groups with which its values, of which 8 is subtracted, have the least error."""
    scales = np.empty((len(matrix), groups), np.float16)
    step = max(_PIECE // (groups * matrix.shape[1]), 1)
    for start in range(0, len(matrix), step):
        rows = slice(start, start + step)
        grouped = values[rows].reshape(-1, groups, matrix.shape[1] // groups).astype(np.float32) - OFFSET
        scales[rows] = _least_squares(grouped, matrix[rows], moments)
    return scales


def _least_squares(values: Numbers, matrix: Numbers, moments: Numbers) -> Numbers:
    """Returns the scales `[R, G]` of values `[R, G, size]` of rows `[R, I]`, by the normal equations of each row."""
    rows, groups, size = values.shape
    parts = np.split(moments, groups)
    products = np.stack([values[:, group] @ part for group, part in enumerate(parts)], axis=1)
    normal = np.einsum("rghi,rhi->rgh", products.reshape(rows, groups, groups, size), values).astype(np.float64)
    diagonal = np.einsum("rgg->rg", normal)  # a view
    diagonal[diagonal == 0] = 1  # a group of zeros has any scale
    right = np.einsum("rgi,ri->rg", products, matrix)
    scales = np.linalg.solve(normal, right[..., None])[..., 0]
    return np.clip(scales, -_LARGEST, _LARGEST).astype(np.float32)
