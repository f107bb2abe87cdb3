"""Making an engine while somebody watches: progress, a summary, and how to leave before it is done."""

import importlib.metadata
import os
import re
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import platformdirs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ...engine import (
    AsyncEngine,
    ConfigError,
    DeviceFacts,
    EngineConfig,
    EngineCore,
    HostGroup,
    MeshShape,
    ModelSource,
    load_engine,
    shown_bytes,
)
from ..observability.logging import is_json, say
from ..settings import Settings, mesh_sizes
from .signals import leave_now

_LINE_EVERY_S: Final = 10.0
"""Where there is no terminal, a log gets a line for each stage and as often as this within one."""

_VERBS: Final = {"weights": "loading weights", "compile": "compiling"}


class LoadProgress:
    """Shows how far loading is: a bar per stage on a terminal, else now and then a line. Goes to stderr.

    May be called by several threads; `close` also more than once.

    Args:
      programs: the folder that compiled programs are kept in; None where none are.
    """

    def __init__(self, programs: Path | None = None) -> None:
        self._programs = programs
        self._known_programs = _num_programs(programs)
        self._console = Console(stderr=True)
        self._bars: dict[str, TaskID] = {}
        self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal or is_json(),
        )

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == "compile":
            self._explain()
        if self._progress.disable:
            self._line(stage, done, total)
            return
        if stage not in self._bars:
            self._progress.start()
            self._bars[stage] = self._progress.add_task(_VERBS.get(stage, stage), total=total)
        self._progress.update(self._bars[stage], completed=done)

    def close(self) -> None:
        self._progress.stop()

    def _explain(self) -> None:
        """Says once that compiling is for later starts too, if a program has been added to those that are kept."""
        if self._programs is None or _num_programs(self._programs) == self._known_programs:
            return
        folder, self._programs = self._programs, None
        text = f"compiling for the first time; the programs are kept in {folder}, so later starts are quicker"
        if self._progress.disable:
            say(text)
        else:
            self._progress.console.print(text, highlight=False, markup=False)

    def _line(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            say(f"{_VERBS.get(stage, stage)}: {done} of {total}", fields={"stage": stage, "done": done, "total": total})


def _num_programs(folder: Path | None) -> int:
    """Number of programs that JAX has put into its cache."""
    if folder is None or not folder.is_dir():
        return 0
    return sum(1 for path in folder.iterdir() if path.name.endswith("-cache"))


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
    names = {field.name for field in fields(EngineConfig)} - {"state_key", "compile_cache"}
    return settings.model_dump(include=names)


def _converted_settings(settings: Settings) -> dict[str, Any]:
    sizes = mesh_sizes(settings.mesh)
    key = settings.state_key
    return {
        "state_key": None if key is None else key.get_secret_value().encode(),
        "compile_cache": _compile_cache(settings.compile_cache),
        "shards": None if sizes is None else MeshShape(*sizes),
        "hosts": _hosts(settings),
    }


def _hosts(settings: Settings) -> HostGroup | None:
    if settings.coordinator is None:
        return None
    leader, port = settings.coordinator.rsplit(":", 1)
    return HostGroup(leader, int(port), settings.num_hosts, settings.host_index)


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


def greeting(address: str) -> str:
    """The first line of a server that is ready."""
    scheme, _, rest = address.partition("://")
    here = re.sub(r"^(?:0\.0\.0\.0|\[::\])", "localhost", rest)  # addresses to listen on, which no browser can open
    return f"Roost {importlib.metadata.version('roost')} is ready. Chat in a browser: {scheme}://{here}/"


def summary(
    source: ModelSource, config: EngineConfig, slots: int, model_id: str, address: str, device: DeviceFacts
) -> Sequence[str]:
    """What is served, in a few lines, each with a name in front."""
    dtype = source.config.dtype if config.dtype == "auto" else config.dtype
    state_bytes = source.config.state_bytes(4 if dtype == "float32" else 2)
    quantize = config.quantize or source.config.quantize
    quantized = f", quantised to {quantize}" if quantize else ""
    noise = "  (random weights: its answers are noise)" if source.is_random else f", {_place(source)}"
    return (
        f"address     {address}/v1",
        f"model       {model_id}{noise}",
        f"parameters  {_millions(source.config.num_parameters)}, {dtype}{quantized}",
        f"slots       {slots}, {shown_bytes(state_bytes)} of state each, {shown_bytes(slots * state_bytes)} together",
        f"capacity    {slots} requests at a time, {config.max_queue} more may wait",
        f"device      {_device(device, config.shards)}",
        f"programs    {config.compile_cache or 'not kept: every start compiles anew (--compile-cache)'}",
        f"prefixes    {_prefix_cache(config)}",
        "stop        Ctrl-C finishes open requests first; a second one stops at once",
    )


def _place(source: ModelSource) -> Path:
    first = source.weights[0]
    return (first if first.is_dir() else first.parent).resolve()


def _device(device: DeviceFacts, shards: MeshShape | None) -> str:
    count = f"{device.num_devices} x " if device.num_devices > 1 else ""
    if device.platform != "cpu":
        return f"{count}{device.kind} ({device.platform})"
    if device.why_no_native_kernels is not None:
        return f"{count}CPU without native kernels: {device.why_no_native_kernels}"
    if shards is None or shards.count > 1:
        return f"{count}CPU without native kernels: several devices share the cores"
    return f"{count}CPU with native kernels"


def _prefix_cache(config: EngineConfig) -> str:
    match config.state_cache_gib:
        case 0:
            memory = "not cached"
        case None:
            memory = "cached in an eighth of free memory"
        case _:
            memory = f"cached in {config.state_cache_gib:g} GiB of memory"
    if config.state_cache_dir is None or config.state_cache_gib == 0:
        return memory
    return f"{memory} and {config.state_cache_dir_gib:g} GiB of {config.state_cache_dir}"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
