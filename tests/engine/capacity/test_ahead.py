"""A program that was compiled before is found in the folder of compiled programs."""

from pathlib import Path

from cache_settings import restored
from roost.engine import EngineConfig, compiles_from_cache, open_model

TINY = open_model(str(Path(__file__).parents[2] / "golden" / "tiny-a" / "hf"))


def test_a_program_is_found_once_it_is_there(tmp_path: Path) -> None:
    settings = EngineConfig(compile_cache=tmp_path / "programs")
    with restored():
        assert [compiles_from_cache(TINY, settings) for _ in range(2)] == [False, True]
