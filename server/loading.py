"""Making an engine while somebody watches: progress, a summary, and how to leave before it is done."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NoReturn

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..engine import AsyncEngine, ConfigError, EngineConfig, EngineCore, HostGroup, ModelSource, Shards, load_engine
from .leaving import leave_now
from .settings import Settings, mesh_sizes

_LINE_EVERY_S: Final = 10.0
"""Where there is no terminal, a log gets a line for each stage and as often as this within one."""

_VERBS: Final = {"weights": "loading weights", "compile": "compiling"}


class LoadProgress:
    """Shows how far loading is: a bar per stage on a terminal, else now and then a line. Goes to stderr.

    May be called by several threads; `close` also more than once.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._progress.disable:
            self._line(stage, done, total)
            return
        if stage not in self._bars:
            self._progress.start()
            self._bars[stage] = self._progress.add_task(_VERBS.get(stage, stage), total=total)
        self._progress.update(self._bars[stage], completed=done)

    def close(self) -> None:
        self._progress.stop()

    def _line(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            print(f"{_VERBS.get(stage, stage)}: {done} of {total}", file=sys.stderr, flush=True)


def engine_config(settings: Settings) -> EngineConfig:
    """
    Raises:
      ConfigError: a setting is wrong; the text names the flag, the variable or the file that it came from.
    """
    try:
        return _engine_config(settings)
    except ConfigError as error:
        raise ConfigError(settings.rename(str(error))) from None


def _engine_config(settings: Settings) -> EngineConfig:
    sizes = mesh_sizes(settings.mesh)
    return EngineConfig(
        slots=settings.slots,
        max_queue=settings.max_queue,
        max_queue_tokens=settings.max_queue_tokens,
        reserved_slots=settings.reserved_slots,
        prefill_chunk=settings.prefill_chunk,
        dtype=settings.dtype,
        seed=settings.seed,
        quantize=settings.quantize,
        state_cache_gib=settings.state_cache_gib,
        state_cache_inexact=settings.state_cache_inexact,
        state_cache_dir=settings.state_cache_dir,
        state_cache_dir_gib=settings.state_cache_dir_gib,
        state_key=state_key(settings),
        compile_cache=_compile_cache(settings.compile_cache),
        shards=None if sizes is None else Shards(*sizes),
        hosts=_hosts(settings),
    )


def _hosts(settings: Settings) -> HostGroup | None:
    if settings.coordinator is None:
        return None
    leader, port = settings.coordinator.rsplit(":", 1)
    return HostGroup(leader, int(port), settings.num_hosts, settings.host_index)


def state_key(settings: Settings) -> bytes | None:
    """What signs states."""
    return None if settings.state_key is None else settings.state_key.get_secret_value().encode()


def _compile_cache(setting: Literal["auto", "off"] | Path) -> Path | None:
    """Where compiled programs are kept. A folder that nobody asked for may be missing, as where nothing is writable."""
    if isinstance(setting, Path):
        return setting
    folder = platformdirs.user_cache_path("roost", appauthor=False) / "programs"
    if setting == "auto" and _is_writable(folder):
        return folder
    return None


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def make_engine(source: ModelSource, config: EngineConfig, progress: LoadProgress) -> AsyncEngine:
    """An engine that will load once it is started."""

    def build() -> EngineCore:
        try:
            return load_engine(source, config, progress)
        finally:
            progress.close()

    return AsyncEngine(build)


def is_loading(engine: AsyncEngine) -> bool:
    """Whether a started engine is neither ready nor dead."""
    return not engine.is_ready and engine.error is None


def leave_while_loading(progress: LoadProgress, status: int) -> NoReturn:
    """Ends the process here and now."""
    progress.close()
    leave_now(status)


def summary(source: ModelSource, config: EngineConfig, slots: int, model_id: str, address: str) -> Sequence[str]:
    """What is served, in a few lines."""
    dtype = source.config.dtype if config.dtype == "auto" else config.dtype
    state_bytes = source.config.state_bytes(4 if dtype == "float32" else 2)
    quantize = config.quantize or source.config.quantize
    quantized = f", quantised to {quantize}" if quantize else ""
    noise = "  (random weights: its answers are noise)" if source.is_random else ""
    return (
        f"model       {model_id}{noise}",
        f"parameters  {_millions(source.config.num_parameters)}, {dtype}{quantized}",
        f"slots       {slots}, {_mebibytes(state_bytes)} of state each, {_mebibytes(slots * state_bytes)} together",
        f"capacity    {slots} requests at a time, {config.max_queue} more may wait",
        f"address     {address}/v1",
    )


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
