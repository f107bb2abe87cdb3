"""Memory that a process may still take, within its machine and its container, and sizes as people read them."""

import os
from pathlib import Path

import pytest
from roost.engine.model.config import PRESETS
from roost.engine.model.state import state_bytes
from roost.engine.types.host_memory import available_memory, shown_bytes


def test_available_memory_is_some_of_the_machines() -> None:
    assert 2**20 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("folder", "limit", "used"),
    [
        ("sys/fs/cgroup", "memory.max", "memory.current"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ],
)
def test_a_containers_limit_counts_too(tmp_path: Path, folder: str, limit: str, used: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   8000 kB\n")
    assert available_memory(tmp_path) == 8000 * 1024
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / limit).write_text("5000000\n")
    (tmp_path / folder / used).write_text("3000000\n")
    (tmp_path / folder / "memory.stat").write_text("anon 1\ninactive_file 1000000\nactive_file 7\n")
    assert available_memory(tmp_path) == 3_000_000
    (tmp_path / folder / limit).write_text("max\n")
    assert available_memory(tmp_path) == 8000 * 1024


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
