"""The plan's arithmetic, against figures worked out elsewhere."""

import pytest
from roost.engine.model.config import PRESETS
from roost.engine.plan import DEVICES, plan


@pytest.mark.parametrize(
    ("model", "device", "slots", "limit"),
    [("2b", "v5e", 542, 29_675), ("2b", "v6e", 1396, 76_129), ("9b", "v6e", 468, 25_640), ("9b", "v5e", 0, 0)],
)
def test_slots_and_decode_limit(model: str, device: str, slots: int, limit: int) -> None:
    """As a roofline on paper has them, within a hundredth."""
    planned = plan(PRESETS[model], DEVICES[device], 2)
    assert planned.slots == pytest.approx(slots, rel=0.01)
    if slots:
        assert planned.decode_tokens_per_second(planned.slots) == pytest.approx(limit, rel=0.01)


def test_one_slot_is_bound_by_the_weights() -> None:
    planned = plan(PRESETS["2b"], DEVICES["v5e"], 2)
    assert planned.decode_tokens_per_second(1) == pytest.approx(152, rel=0.01)


@pytest.mark.parametrize(("model", "limit"), [("2b", 47_597), ("9b", 12_906)])
def test_prefill_limit(model: str, limit: int) -> None:
    assert plan(PRESETS[model], DEVICES["v5e"], 2).prefill_tokens_per_second() == pytest.approx(limit, rel=0.02)


def test_memory_grows_by_a_slot_at_a_time() -> None:
    planned = plan(PRESETS["9b"], DEVICES["v6e"], 2)
    assert planned.memory_bytes(3) - planned.memory_bytes(2) == planned.slot_bytes == 26_230_784
    assert planned.memory_bytes(planned.slots) <= 0.92 * DEVICES["v6e"].memory_bytes
