"""What the devices are, and how many slots they hold."""

import os
from pathlib import Path

import pytest
from roost.engine.core.errors import ConfigError
from roost.engine.platform import CPU_MAX_SLOTS, affordable_slots, available_memory


def test_slots_that_do_not_fit_are_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"a slot takes 1,048,576\.00 TiB"):
        affordable_slots(2**60, 0, "cpu")


def test_weights_are_taken_into_account_before_they_are_loaded() -> None:
    assert affordable_slots(2**10, 0, "cpu") == CPU_MAX_SLOTS
    with pytest.raises(ConfigError, match="memory left for slots is 0 B"):
        affordable_slots(2**10, 2**60, "cpu")


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
