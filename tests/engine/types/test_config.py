"""Order of slots on a mesh, their rows in decode steps, and settings of a simulated device."""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from roost.engine import ConfigError, EngineConfig, HostGroup, Simulation
from roost.engine.types.config import Fault, FaultKind, decode_places, slot_order


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


def test_a_device_alone_has_its_rooflines_pace() -> None:
    assert Simulation.parse("v6e") == Simulation("v6e", device="v6e")


def test_options_follow_a_device_or_stand_alone() -> None:
    text = "h100, jitter=0.1, output_tokens=50, fault=stuck@30, efficiency=0.5"
    fault = Fault(FaultKind.STUCK, 30)
    expected = Simulation(text, device="h100", efficiency=0.5, jitter=0.1, output_tokens=50, fault=fault)
    assert Simulation.parse(text) == expected
    pace = Simulation.parse("step_ms=9.8,prefill_tokens_per_s=40000")
    assert (pace.device, pace.step_ms, pace.prefill_tokens_per_s) == ("v5e", 9.8, 40_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v5e,speed=3", "not 'speed=3'"),
        ("v5e,v6e", "not 'v6e'"),
        ("step_ms=0", "step_ms=a positive number, not 'step_ms=0'"),
        ("step_ms=nan", "step_ms=a positive number"),
        ("step_ms=fast", "not 'step_ms=fast'"),
        ("v5e,jitter=1", "jitter=a number from 0, below 1"),
        ("efficiency=1.1", "efficiency=a number above 0, at most 1"),
        ("output_tokens=0.5", "output_tokens=a positive integer"),
        ("fault=stuck", "fault=stuck|slow|dying@STEPS"),
        ("fault=lazy@3", "fault=stuck|slow|dying@STEPS"),
    ],
)
def test_an_error_names_the_option_and_what_it_takes(text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=r"^simulate takes ") as caught:
        Simulation.parse(text)
    assert expected in str(caught.value)


def test_several_hosts_cannot_be_simulated() -> None:
    with pytest.raises(ConfigError, match="one host"):
        EngineConfig(simulate=Simulation.parse("v5e"), hosts=HostGroup("localhost", 1, 2, 0))
