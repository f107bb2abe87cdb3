"""The engine's part of the settings."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import platformdirs
import pytest
from roost.engine import ConfigError
from roost.server.assembly.service import engine_config
from roost.server.settings import load_settings


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "roost")
    monkeypatch.delenv("ROOST_COMPILE_CACHE")
    assert engine_config(load_settings({})).compile_cache == tmp_path / "roost" / "programs"
    assert engine_config(load_settings({"compile_cache": "off"})).compile_cache is None
    assert engine_config(load_settings({"compile_cache": "/else"})).compile_cache == Path("/else")


def test_programs_are_not_kept_without_a_writable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "file")
    assert engine_config(load_settings({"compile_cache": "auto"})).compile_cache is None


def test_states_are_kept_beside_an_sqlite_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They leave room for the store, and only their owner may read them."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * 2**30))
    store = {"store": f"sqlite://{tmp_path / 'store.db'}"}
    config = engine_config(load_settings(store))
    assert (config.state_cache_dir, config.state_cache_dir_gib) == (tmp_path / "store.db-states", 2.0)
    assert (tmp_path / "store.db-states").stat().st_mode & 0o777 == 0o700
    assert engine_config(load_settings({**store, "state_cache_dir_gib": 1.0})).state_cache_dir_gib == 1.0
    given = engine_config(load_settings({**store, "state_cache_dir": "/states"}))
    assert (given.state_cache_dir, given.state_cache_dir_gib) == (Path("/states"), 16.0)
    for others in ({"state_cache_dir": "off"}, {"state_cache_gib": 0.0}, {"store": f"sqlite://{tmp_path}/missing/x"}):
        assert engine_config(load_settings({**store, **others})).state_cache_dir is None
    for address in ("memory:", "postgresql://db/roost"):
        assert engine_config(load_settings({"store": address})).state_cache_dir is None


ENGINE_SETTINGS: dict[str, Any] = {
    "slots": 3,
    "max_queue": 4,
    "max_queue_tokens": 5,
    "reserved_slots": 2,
    "prefill_chunk": 64,
    "itl_target_ms": 50.5,
    "dtype": "float32",
    "seed": 7,
    "quantize": "int8",
    "state_cache_gib": 1.5,
    "state_cache_inexact": True,
    "state_cache_dir": Path("states"),
    "state_cache_dir_gib": 2.5,
}


def test_the_engine_gets_the_settings_that_it_shares_a_name_with() -> None:
    config = engine_config(load_settings({**ENGINE_SETTINGS, "state_key": "sixteen characters and more"}))
    assert {name: getattr(config, name) for name in ENGINE_SETTINGS} == ENGINE_SETTINGS
    assert config.state_key == b"sixteen characters and more"


def test_a_simulated_device_is_one_that_is_known() -> None:
    simulation = engine_config(load_settings({"simulate": "v6e,jitter=0.1"})).simulate
    assert simulation is not None
    assert (simulation.device, simulation.jitter) == ("v6e", 0.1)
    with pytest.raises(ConfigError, match=r"^--simulate takes one of v4, v5e"):
        engine_config(load_settings({"simulate": "v9x"}))
    with pytest.raises(ConfigError, match=r"^--simulate takes step_ms=a positive number"):
        engine_config(load_settings({"simulate": "step_ms=0"}))
