"""How much memory a process may still take, within its machine and its container."""

import os
from pathlib import Path

import pytest
from roost.engine.types.host_memory import available_memory


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
