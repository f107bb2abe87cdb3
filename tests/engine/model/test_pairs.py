"""Packing of several positions of several rows."""

import jax.numpy as jnp
import numpy as np
from roost.engine.model.speculation import Pairs


def pairs_of(*counts: int, size: int = 8) -> Pairs:
    return Pairs.of(jnp.array(counts, jnp.int32), size)


def test_pairs_are_packed_row_by_row() -> None:
    pairs = pairs_of(2, 0, 1, 3)
    assert pairs.rows.tolist() == [0, 0, 2, 3, 3, 3, 4, 4]
    assert pairs.offsets.tolist() == [0, 1, 0, 0, 1, 2, 0, 0]
    assert pairs.is_used.tolist() == [True] * 6 + [False] * 2
    assert int(pairs.depth) == 3


def test_values_go_to_pairs_and_back() -> None:
    pairs = pairs_of(2, 0, 1, 3)
    rows = jnp.array([[10], [20], [30], [40]])
    of_pairs = pairs.of_rows(rows)[:, 0] + pairs.offsets
    assert of_pairs[:6].tolist() == [10, 11, 30, 40, 41, 42]
    by_row = np.asarray(pairs.by_row(of_pairs, 3))
    assert (by_row[0, :2].tolist(), by_row[2, :1].tolist(), by_row[3].tolist()) == ([10, 11], [30], [40, 41, 42])
    by_offset = jnp.array([[10, 20, 30, 40], [11, 21, 31, 41], [12, 22, 32, 42]])
    assert pairs.of_offsets(by_offset)[:6].tolist() == of_pairs[:6].tolist()
    assert pairs.index_at(1).tolist() == [1, 8, 8, 4]
    assert np.asarray(pairs.at(1, of_pairs))[[0, 3]].tolist() == [11, 41]
