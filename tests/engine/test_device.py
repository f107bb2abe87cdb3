"""What the devices are, and how many slots they hold."""

import os

import pytest
from roost.engine.device import CPU_MAX_SLOTS, affordable_slots, available_memory
from roost.engine.errors import ConfigError


def test_slots_that_do_not_fit_are_refused_with_numbers() -> None:
    with pytest.raises(ConfigError, match=r"a slot takes 1099511627776\.0 MiB"):
        affordable_slots(2**60, 0, "cpu")


def test_weights_are_taken_into_account_before_they_are_loaded() -> None:
    assert affordable_slots(2**10, 0, "cpu") == CPU_MAX_SLOTS
    with pytest.raises(ConfigError, match="memory left for slots is 0 MiB"):
        affordable_slots(2**10, 2**60, "cpu")


def test_available_memory_is_some_of_the_machines() -> None:
    assert 2**20 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
