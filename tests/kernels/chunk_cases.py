"""Chunks for the kernels' tests: positions of rows in their documents, document starts, and padding."""

import hypothesis.strategies as st
import numpy as np
from roost.engine.devices.platform import CPU_OPTIONS

__all__ = ["CPU_OPTIONS", "SEEDS", "cut", "positions"]

SEEDS = st.integers(0, 2**32 - 1)
"""Seeds of the values in a test's arrays."""


@st.composite
def positions(draw: st.DrawFn, rows: int, steps: int, several_documents: bool = False) -> np.ndarray:
    """Draws positions `[rows, steps]`: rows of any length from 0 on, anywhere in their documents, then padding.

    With `several_documents`, a new document may begin anywhere in a row.
    """
    out = np.full((rows, steps), -1, np.int32)
    for row in out:
        length, start = draw(st.integers(0, steps)), draw(st.just(0) | st.integers(0, 40))
        row[:length] = start + np.arange(length)
        begin = draw(st.integers(0, 2 * steps)) if several_documents else length
        row[begin:length] = np.arange(max(length - begin, 0))
    return out


def cut(x: np.ndarray, positions: np.ndarray, at: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns a chunk as two of the same shape, (array, positions) each: the steps before `at`, and the others."""
    first, rest = positions.copy(), np.full_like(positions, -1)
    first[:, at:] = -1
    rest[:, : positions.shape[1] - at] = positions[:, at:]
    return [(x, first), (np.roll(x, -at, axis=1), rest)]
