"""RoPE on CPUs: a row's bits do not depend on the number of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from roost.engine.devices.platform import CPU_OPTIONS
from roost.engine.model.rope import apply_rope


@pytest.mark.parametrize("head_dim", [8, 16, 32, 64, 256])
def test_rows_are_rotated_alike_among_any_number_of_rows(head_dim: int) -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(32, 4, head_dim)).astype(np.float32)
    k = rng.normal(size=(32, head_dim)).astype(np.float32)
    positions = np.arange(7, 39, dtype=np.int32)

    def rotated(rows: int) -> tuple[np.ndarray, np.ndarray]:
        arguments = tuple(jnp.array(x[:rows]) for x in (q, k, positions))
        lowered = jax.jit(lambda q, k, p: apply_rope(q, k, p, 10_000.0)).lower(*arguments)
        new_q, new_k = lowered.compile(compiler_options=CPU_OPTIONS)(*arguments)
        return np.asarray(new_q), np.asarray(new_k)

    whole = rotated(32)
    for rows in (1, 4, 8, 16):
        for some, all_ in zip(rotated(rows), whole, strict=True):
            np.testing.assert_array_equal(some, all_[:rows])
