"""Order of slots on a mesh."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from roost.engine.core.mesh import slot_order


@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ((4, 4, 1, 1), (0, 1, 2, 3)),
        ((8, 8, 2, 2), (0, 4, 2, 6, 1, 5, 3, 7)),  # data, then model, then the next row of each
        ((5, 8, 2, 2), (0, 4, 2, 6, 1)),
    ],
)
def test_slots_are_spread_over_shards(sizes: tuple[int, int, int, int], order: tuple[int, ...]) -> None:
    assert slot_order(*sizes) == order


@given(data=st.integers(1, 5), model=st.integers(1, 5), per_part=st.integers(1, 4))
def test_every_row_is_a_slot_once_and_shards_fill_evenly(data: int, model: int, per_part: int) -> None:
    rows = data * model * per_part
    order = slot_order(rows, rows, data, model)
    assert sorted(order) == list(range(rows))
    for count in range(rows + 1):
        used = [sum(slot // per_part == part for slot in order[:count]) for part in range(data * model)]
        assert max(used) - min(used) <= 1
