"""Summaries of profiles."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from roost.engine.worker.profiling import longest_operations, profiled


def test_the_longest_operations_are_those_of_programs(tmp_path: Path) -> None:
    """A CPU's profile also has events that contain all operations of a program."""
    compute = jax.jit(lambda x: jnp.sin(x @ x).sum())
    x = jnp.ones((512, 512))
    compute(x).block_until_ready()
    with profiled(tmp_path):
        compute(x).block_until_ready()
    found = longest_operations(tmp_path, 10)
    assert found.operations
    assert not [each.name for each in found.operations if "::" in each.name]
    assert found.busy_seconds is None


def test_a_folder_without_a_profile_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="xplane"):
        longest_operations(tmp_path, 10)
