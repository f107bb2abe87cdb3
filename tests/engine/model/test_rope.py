"""RoPE on CPUs: a row's bits do not depend on the number of rows."""

from functools import partial

import jax
import numpy as np
import pytest
from roost.engine.devices.platform import CPU_OPTIONS
from roost.engine.model.layers import apply_rope
from sweeps import full


@pytest.mark.parametrize("head_dim", [8, 64, 256, *full(16, 32)])
def test_rows_are_rotated_alike_among_any_number_of_rows(head_dim: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(32, 4, head_dim)).astype(np.float32)
    k = rng.normal(size=(32, head_dim)).astype(np.float32)
    positions = np.arange(7, 39, dtype=np.int32)

    @partial(jax.jit, compiler_options=CPU_OPTIONS)
    def rotated(cases: list[tuple[jax.Array, ...]]) -> list[tuple[jax.Array, jax.Array]]:
        return [apply_rope(q, k, positions, 10_000.0) for q, k, positions in cases]

    some, (whole,) = rotated([(q[:n], k[:n], positions[:n]) for n in (1, 4, 8, 16)]), rotated([(q, k, positions)])
    for found in some:
        for one, all_ in zip(found, whole, strict=True):
            np.testing.assert_array_equal(one, np.asarray(all_)[: len(one)])
