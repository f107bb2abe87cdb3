"""Scales of groups of 4-bit values: a search for the least squared error, which needs no data."""

from typing import Any, Final

import numpy as np

type Groups = np.ndarray[Any, np.dtype[np.float32]]
"""Groups of weights, `[N, size]`."""

type Scales = np.ndarray[Any, np.dtype[np.float16]]
"""Scale of each group, `[N]`."""

_LARGEST: Final = float(np.finfo(np.float16).max)

_STEPS: Final = (-8.6, -8.0, -7.5, -7.0, -6.5, -6.0)
"""Values that the weight of the largest size in a group becomes in the candidates."""


def search_scales(groups: Groups) -> Scales:
    """Returns the scale of each group for which the values' squared error is the least of some candidates.

    A candidate maps the group's weight of the largest size to one of a few numbers near -8, so a scale may be negative.
    Given the rounded values q of a candidate, the best scale is w · q / q · q.
    """
    extreme = _extremes(groups)
    best, scales = np.zeros(len(groups), np.float32), np.zeros(len(groups), np.float32)
    for step in _STEPS:
        factors = np.divide(np.float32(step), extreme, out=np.zeros_like(extreme), where=np.abs(extreme) > 1e-30)
        values = groups * factors[:, None]
        np.clip(np.rint(values, out=values), -8, 7, out=values)
        along, size = _dots(groups, values), np.maximum(_dots(values, values), 1)
        gain = along * along / size
        is_better = gain > best
        best[is_better], scales[is_better] = gain[is_better], (along / size)[is_better]
    return np.clip(scales, -_LARGEST, _LARGEST).astype(np.float16)


def _extremes(groups: Groups) -> Groups:
    """Returns the weight of the largest size in each group, with its sign."""
    high, low = groups.max(axis=1), groups.min(axis=1)
    return np.where(high > -low, high, low)


def _dots(one: Groups, other: Groups) -> Groups:
    """Returns the dot product of each pair of groups, added in an order that depends on their size alone."""
    sums: Groups = np.einsum("ng,ng->n", one, other)
    return sums
