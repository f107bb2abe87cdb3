"""Converts the settings of `roost serve` into the engine's configuration."""

import os
import shutil
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal

import platformdirs

from ...engine import DEVICES, ConfigError, EngineConfig, HostGroup, MeshShape, Simulation, Speculation
from ..settings import Settings, mesh_sizes

_SPECULATION: Final = {
    "num_speculative_tokens": "num_tokens",
    "prompt_lookup_min": "min_match",
    "prompt_lookup_max": "max_match",
}
"""Fields of `Speculation` by vLLM's names."""


_CONVERTED: Final = {"state_key", "state_cache_dir", "state_cache_dir_gib", "compile_cache", "simulate", "speculation"}
"""Fields whose settings have the same names and other types."""

_SHARE_OF_DISK: Final = 4
"""Reciprocal of the maximum share of the free disk space that the default folder of states takes."""


def engine_config(settings: Settings) -> EngineConfig:
    """Returns the engine's part of the settings.

    Raises:
      ConfigError: A setting is wrong; the text names the flag, the variable or the file that it came from.
    """
    try:
        return EngineConfig(**_shared_settings(settings), **_converted_settings(settings))
    except ConfigError as error:
        raise ConfigError(settings.rename(str(error))) from None


def _shared_settings(settings: Settings) -> dict[str, Any]:
    """Returns the settings that `EngineConfig` has under the same name, unless they need conversion."""
    names = {field.name for field in fields(EngineConfig)} - _CONVERTED
    return settings.model_dump(include=names)


def _converted_settings(settings: Settings) -> dict[str, Any]:
    sizes = mesh_sizes(settings.mesh)
    key, folder = settings.state_key, _state_cache_dir(settings)
    return {
        "state_cache_dir": folder,
        "state_cache_dir_gib": _state_cache_dir_gib(settings, folder),
        "state_key": None if key is None else key.get_secret_value().encode(),
        # A follower compiles what its leader calls, but isn't given the leader's store.
        "request_snapshots": settings.num_hosts > 1 or settings.store_address.kind != "memory",
        "compile_cache": _compile_cache(settings.compile_cache),
        "shards": None if sizes is None else MeshShape(*sizes),
        "hosts": _hosts(settings),
        "simulate": None if settings.simulate is None else _simulation(settings.simulate),
        "speculation": speculation_of(settings),
    }


def speculation_of(settings: Settings) -> Speculation | None:
    """Returns the settings of drafted tokens; None without speculation.

    Raises:
      ConfigError: A number is out of range.
    """
    given = settings.speculative_config
    if given is None:
        return None
    numbers = {field: given[name] for name, field in _SPECULATION.items() if name in given}
    try:
        return Speculation(**numbers)
    except ConfigError as error:
        raise ConfigError(f"speculative_config: {error}") from None


def _simulation(text: str) -> Simulation:
    simulation = Simulation.parse(text)
    if simulation.device not in DEVICES:
        raise ConfigError(f"simulate takes one of {', '.join(DEVICES)}, not {simulation.device!r}")
    return simulation


def _hosts(settings: Settings) -> HostGroup | None:
    if settings.coordinator is None:
        return None
    leader, port = settings.coordinator.rsplit(":", 1)
    return HostGroup(leader, int(port), settings.num_hosts, settings.host_index)


def _compile_cache(setting: Literal["auto", "off"] | Path) -> Path | None:
    """Returns the folder for compiled programs. The default folder is left out if it is not writable."""
    if isinstance(setting, Path):
        return setting
    folder = platformdirs.user_cache_path("roost", appauthor=False) / "programs"
    if setting == "auto" and _is_writable(folder):
        return folder
    return None


def _state_cache_dir(settings: Settings) -> Path | None:
    """Returns the folder for the states of prompts.

    The default folder is beside the file of an SQLite store, so that stored conversations continue at constant cost
    after a restart. It is left out if it is not writable.
    """
    if isinstance(settings.state_cache_dir, Path):
        return settings.state_cache_dir
    address = settings.store_address
    if settings.state_cache_dir == "off" or address.kind != "sqlite" or settings.state_cache_gib == 0:
        return None
    folder = Path(f"{address.target}-states")
    with suppress(OSError):  # only its owner may read it, as the store's file
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else None


def _state_cache_dir_gib(settings: Settings, folder: Path | None) -> float:
    """Returns the maximum size of the folder for states, which leaves room for the store's file beside it."""
    most = settings.state_cache_dir_gib
    if folder is None or settings.state_cache_dir != "auto":
        return most
    return min(most, shutil.disk_usage(folder).free / 2**30 / _SHARE_OF_DISK)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
