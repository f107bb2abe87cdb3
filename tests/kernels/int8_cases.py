"""Vectors and matrices in int8 for the kernels' tests, and blocks of few rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import jax
import numpy as np
from roost.kernels.products import pallas_tpu
from roost.kernels.window_attention import Int8Vectors, quantize

__all__ = ["as_floats", "blocks_of_32_rows", "draw_float32", "int8", "int8_matrix"]


def int8(x: np.ndarray) -> Int8Vectors:
    return jax.tree.map(np.asarray, jax.jit(quantize)(x))


def as_floats(x: Int8Vectors) -> np.ndarray:
    """The vectors that queries attend to."""
    return x.values * (np.swapaxes(x.scale, 1, 2) if x.values.ndim == 3 else x.scale)


def int8_matrix(rng: np.random.Generator, outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws values, scales and biases, so that products are about as large as their inputs."""
    values = rng.integers(-127, 128, (outputs, inputs), np.int8)
    return values, (rng.uniform(0.5, 1.5, outputs) / 64 / inputs**0.5).astype(np.float32), draw_float32(rng, outputs)


def draw_float32(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@contextmanager
def blocks_of_32_rows() -> Iterator[None]:
    """Makes TPU kernels that stream a matrix compute 32 rows at a time, the fewest, as if no more fitted the chip.

    Thousands of rows fit, more than can be interpreted.
    """
    with patch.object(pallas_tpu, "_BUDGET", 0):
        yield
