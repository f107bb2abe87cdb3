"""Sizes as people read them."""

import pytest
from roost.engine.model.config import PRESETS
from roost.engine.model.state import state_bytes
from roost.engine.types.host_memory import shown_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (56_832, "55.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**20, "1.0 MiB"),
        (2**30 - 1, "1.00 GiB"),
        (16 * 10**9, "14.90 GiB"),
        (2**40, "1.00 TiB"),
        (2**60, "1,048,576.00 TiB"),
    ],
)
def test_a_size_has_the_unit_that_fits_it(count: int, text: str) -> None:
    assert shown_bytes(count) == text


def test_states_of_the_presets() -> None:
    """By hand, in bfloat16: 18 x 2560 x (4 + 3 x 2) + 8 x 2 x 2048 x 256 x 2 bytes for 2B, and
    26 x 4096 x (4 + 3 x 2) + 12 x 2 x 2048 x 256 x 2 for 9B."""
    assert state_bytes(PRESETS["2b"], 2) == 460_800 + 16_777_216
    assert state_bytes(PRESETS["9b"], 2) == 1_064_960 + 25_165_824
    assert [shown_bytes(state_bytes(PRESETS[name], 2)) for name in ("2b", "9b")] == ["16.4 MiB", "25.0 MiB"]
