"""Progress bar of a benchmark, on a terminal only."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_INTERVAL_S: Final = 0.25
"""Minimum time between two drawings, which disturb the measurement."""

type Advance = Callable[[int], None]
"""Advances the bar by a number of steps."""


@contextlib.contextmanager
def progress_bar(description: str, total: int) -> Iterator[Advance]:
    """Shows a bar on stderr during the `with` block."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    bar = Progress(*columns, *times, console=console, transient=True, auto_refresh=False)
    if not console.is_terminal:
        yield lambda count: None
        return
    with bar:
        yield _Advancer(bar, description, total)


class _Advancer:
    def __init__(self, bar: Progress, description: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total)
        self._pending = 0
        self._drawn = time.monotonic()

    def __call__(self, count: int) -> None:
        self._pending += count
        if (now := time.monotonic()) - self._drawn >= _INTERVAL_S:
            self._bar.update(self._task, advance=self._pending, refresh=True)
            self._pending, self._drawn = 0, now
