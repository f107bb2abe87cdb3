"""Builds the engine and the service from settings, and reports their loading."""

import math
import os
import shutil
import sys
import time
from contextlib import closing, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal

import platformdirs
from tqdm import tqdm

from ...engine import (
    DEVICES,
    AsyncEngine,
    ConfigError,
    EngineConfig,
    EngineCore,
    HostGroup,
    MeshShape,
    ModelSource,
    Simulation,
    Speculation,
    load_engine,
)
from ..constraints.grammar_compiler import GrammarCompiler
from ..constraints.grammar_worker.protocol import GrammarLimits
from ..generation.admission import Admissions
from ..generation.prompts import PromptEncoder
from ..generation.service import Limits, Service
from ..generation.state_store import StateStore
from ..observability.logging import is_json, say
from ..observability.metrics import Metrics
from ..settings import Settings
from ..settings.fields import mesh_sizes
from ..terminal.exits import exit_now
from ..text.served_model import ServedModel

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

_LINE_INTERVAL_S: Final = 10.0
"""Maximum time between two progress lines of one stage, if stderr is not a terminal."""

_VERBS: Final = {"weights": "loading weights", "compile": "compiling"}


def make_service(
    settings: Settings,
    config: EngineConfig,
    engine: AsyncEngine,
    model: ServedModel,
    metrics: Metrics,
    *,
    is_shared_without_keys: bool = False,
) -> Service:
    """Returns the service of an engine, which need not be started.

    Args:
      is_shared_without_keys: See `Service`.
    """
    admissions = Admissions(settings.max_body_bytes, tenants=config.tenants)
    grammar_limits = GrammarLimits(max_forced=0 if config.speculation is None else config.speculation.num_tokens)
    return Service(
        engine=engine,
        model=model,
        metrics=metrics,
        prompts=PromptEncoder(model),
        admissions=admissions,
        grammars=GrammarCompiler(model.tokenizer, model.end_token_ids, tenants=config.tenants, limits=grammar_limits),
        limits=Limits(
            max_choices=config.max_queue if config.tenants == 1 else -(-config.max_queue // 2),
            max_choices_tokens=config.max_queue_tokens,
            request_timeout_s=math.inf if settings.request_timeout is None else settings.request_timeout,
            max_prompt_tokens=settings.max_prompt_tokens,
        ),
        salt_by_key=settings.cache_salt_by_key,
        state_key=config.state_key,
        is_shared_without_keys=is_shared_without_keys,
        states=StateStore(config.tenants),
    )


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

    The default folder is next to the file of an SQLite store, so that stored conversations continue at constant cost
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
    """Returns the maximum size of the folder for states, which leaves room for the store's file on the same disk."""
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


class LoadProgress:
    """Shows the progress of loading on stderr: a bar per stage on a terminal, otherwise a line from time to time.

    Calls may come from several threads. `close` may be called more than once.
    """

    def __init__(self) -> None:
        self._steps: dict[str, str] = {}
        self._bars: dict[str, tqdm[Any]] = {}
        self._last_line = time.monotonic()
        self._has_bars = sys.stderr.isatty() and not is_json()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Shows that `done` of `total` steps of a stage are done."""
        name = _VERBS.get(stage, stage)
        self._steps[stage] = f"{name}: {done} of {total}"
        if not self._has_bars:
            self._print_line(stage, done, total)
            return
        if stage not in self._bars:
            self._bars[stage] = tqdm(total=total, desc=name)
        self._bars[stage].update(done - self._bars[stage].n)

    @property
    def text(self) -> str:
        """Progress of each stage, such as "loading weights: 3 of 8, compiling: 2 of 23"."""
        return ", ".join(list(self._steps.values()))

    def close(self) -> None:
        """Restores the terminal."""
        for bar in self._bars.values():
            bar.close()

    def _print_line(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last_line >= _LINE_INTERVAL_S:
            self._last_line = now
            say(self._steps[stage], fields={"stage": stage, "done": done, "total": total})


def make_engine(source: ModelSource, config: EngineConfig, progress: LoadProgress) -> AsyncEngine:
    """Returns an engine that loads once it is started."""

    def build() -> EngineCore:
        with closing(progress):
            return load_engine(source, config, progress)

    return AsyncEngine(build)


def exit_if_loading(engine: AsyncEngine, progress: LoadProgress, status: int) -> None:
    """Exits the process, after restoring the terminal, if a started engine is neither ready nor dead."""
    if not engine.is_ready and engine.error is None:
        progress.close()
        exit_now(status)
