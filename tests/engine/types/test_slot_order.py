"""Order of slots on a mesh, and their rows in decode steps."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from roost.engine.types.config import decode_places, slot_order


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


@given(data=st.integers(1, 3), model=st.integers(1, 3), own=st.integers(1, 6), draws=st.data())
def test_a_step_has_the_first_slots_of_each_device(data: int, model: int, own: int, draws: st.DataObject) -> None:
    """As many requests as a step has rows fit into it if they have the first slots in the order."""
    devices = data * model
    rows, sizes = devices * own, [devices * n for n in range(1, own + 1)]
    count = draws.draw(st.integers(1, rows))
    slots = slot_order(rows, rows, data, model)[:count]
    size, places = decode_places(slots, sizes, rows, devices)
    assert size == next(size for size in sizes if size >= count)
    step = [device * own + n for device in range(devices) for n in range(size // devices)]
    assert [step[place] for place in places] == list(slots)
