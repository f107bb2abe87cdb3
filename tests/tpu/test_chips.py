"""Served programs compile ahead of time, and one that does not fit is refused with its bytes."""

from dataclasses import replace
from pathlib import Path

import pytest
from cache_settings import restored
from roost.engine.capacity.chips import TPUS, AheadOfTime, compile_for_chips, compiles_from_cache, open_chips, served_on
from roost.engine.checkpoint.source import open_model
from roost.engine.types.config import EngineConfig, MeshShape
from roost.engine.types.errors import ConfigError
from roost.engine.worker.compilation import OutOfMemoryError

pytestmark = pytest.mark.tpu_compile

TINY = open_model(f"random:{Path(__file__).parents[1] / 'golden' / 'tiny-a' / 'hf' / 'config.json'}")
SETTINGS = EngineConfig(prefill_chunk=64, dtype="bfloat16")


@pytest.mark.parametrize("chip", TPUS)
def test_a_served_program_compiles_with_the_pool_in_place(chip: str) -> None:
    with served_on(open_chips(chip, MeshShape(1, 1)), TINY, SETTINGS, 8) as served:
        compiled = compile_for_chips(served, next(iter(served.programs)))
    assert isinstance(compiled, AheadOfTime)
    assert compiled.memory.alias_bytes > 4 * served.pool.slots.memory.allowed.size, "the pool is in place"
    assert compiled.custom_calls > 0
    assert compiled.cost["bytes accessed"] > 0


def test_a_program_for_a_chip_is_left_in_the_folder_of_compiled_programs(tmp_path: Path) -> None:
    """For one chip of a machine that has no other. Whether the chip's start finds it, `roost report` says."""
    folder = tmp_path / "programs"
    with restored():
        assert not compiles_from_cache(TINY, replace(SETTINGS, compile_cache=folder), "v5e")
    assert len(list(folder.glob("jit_*-cache"))) == 1
    assert len(open_chips("v5e", MeshShape(1, 1)).device.client.devices()) == 1


def test_a_program_that_does_not_fit_is_refused_with_its_bytes() -> None:
    with served_on(open_chips("v5e", MeshShape(1, 1)), TINY, SETTINGS, 2**20) as served:
        overflow = compile_for_chips(served, served.programs.copy_slot)
    assert isinstance(overflow, OutOfMemoryError)
    assert overflow.limit_bytes == 15.75 * 2**30 < overflow.used_bytes


def test_programs_of_a_mesh_compile() -> None:
    with served_on(open_chips("v5e", MeshShape(2, 2)), TINY, SETTINGS, 8) as served:
        assert isinstance(compile_for_chips(served, next(iter(served.programs))), AheadOfTime)


def test_unknown_chips_and_meshes_are_refused() -> None:
    with pytest.raises(ConfigError, match="v9"):
        open_chips("v9", MeshShape(1, 1))
    with pytest.raises(ConfigError, match="mesh of 1000000 chips"):
        open_chips("v5e", MeshShape(1000, 1000))
