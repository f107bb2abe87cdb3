"""Loads an engine, shows progress on stderr, and exits the process while loading."""

import logging
import time
from pathlib import Path
from typing import Final, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ...engine import AsyncEngine, EngineConfig, EngineCore, ModelSource, load_engine
from ..observability.logging import is_json, say
from ..terminal.signals import exit_now

_LINE_INTERVAL_S: Final = 10.0
"""Maximum time between two progress lines of one stage, if stderr is not a terminal."""

_logger = logging.getLogger(__name__)

_VERBS: Final = {"weights": "loading weights", "compile": "compiling"}


class LoadProgress:
    """Shows the progress of loading on stderr: a bar per stage on a terminal, otherwise a line from time to time.

    Calls may come from several threads. `close` may be called more than once.

    Args:
      compile_cache: Folder of compiled programs; None if they are not cached.
    """

    def __init__(self, compile_cache: Path | None = None) -> None:
        self._compile_cache = compile_cache
        self._num_cached = _num_programs(compile_cache)
        self._steps: dict[str, str] = {}
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
        """Shows that `done` of `total` steps of a stage are done."""
        self._steps[stage] = f"{_VERBS.get(stage, stage)}: {done} of {total}"
        if stage == "compile":
            self._explain_first_compile()
        if self._progress.disable:
            self._print_line(stage, done, total)
            return
        if stage not in self._bars:
            self._progress.start()
            self._bars[stage] = self._progress.add_task(_VERBS.get(stage, stage), total=total)
        self._progress.update(self._bars[stage], completed=done)

    @property
    def text(self) -> str:
        """Progress of each stage, such as "loading weights: 3 of 8, compiling: 2 of 23"."""
        return ", ".join(list(self._steps.values()))

    def close(self) -> None:
        """Restores the terminal."""
        self._progress.stop()

    def _explain_first_compile(self) -> None:
        """Prints once that later starts are faster, if a program was added to the cache."""
        if self._compile_cache is None or _num_programs(self._compile_cache) == self._num_cached:
            return
        folder, self._compile_cache = self._compile_cache, None
        text = f"compiling for the first time; the programs are kept in {folder}, so later starts are quicker"
        if self._progress.disable:
            say(text)
        else:
            self._progress.console.print(text, highlight=False, markup=False)

    def _print_line(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - self._last_line >= _LINE_INTERVAL_S:
            self._last_line = now
            say(self._steps[stage], fields={"stage": stage, "done": done, "total": total})


def _num_programs(folder: Path | None) -> int:
    """Returns the number of programs in JAX's compile cache."""
    if folder is None or not folder.is_dir():
        return 0
    return sum(1 for path in folder.iterdir() if path.name.endswith("-cache"))


def make_engine(source: ModelSource, config: EngineConfig, progress: LoadProgress) -> AsyncEngine:
    """Returns an engine that loads once it is started."""

    def build() -> EngineCore:
        start = time.monotonic()
        try:
            return load_engine(source, config, progress)
        finally:
            progress.close()
            _logger.debug("engine: loaded in %.2f s", time.monotonic() - start)

    return AsyncEngine(build)


def is_loading(engine: AsyncEngine) -> bool:
    """Returns whether a started engine is neither ready nor dead."""
    return not engine.is_ready and engine.error is None


def exit_while_loading(progress: LoadProgress, status: int) -> NoReturn:
    """Exits the process immediately, after restoring the terminal."""
    progress.close()
    exit_now(status)
