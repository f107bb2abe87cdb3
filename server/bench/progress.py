"""A bar for somebody who waits at a terminal. Elsewhere nothing."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY_S: Final = 0.25
"""Drawing takes time from what is measured, so it is not done more often."""

type Advance = Callable[[int], None]
"""Told how much more has been done."""


@contextlib.contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """Shows a bar on stderr for as long as the block lasts."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    times = TimeElapsedColumn(), TimeRemainingColumn()
    bar = Progress(*columns, *times, console=console, transient=True, auto_refresh=False)
    if not console.is_terminal:
        yield lambda count: None
        return
    with bar:
        yield _Advancer(bar, what, total)


class _Advancer:
    def __init__(self, bar: Progress, what: str, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task(what, total=total)
        self._pending = 0
        self._drawn = time.monotonic()

    def __call__(self, count: int) -> None:
        self._pending += count
        if (now := time.monotonic()) - self._drawn >= _EVERY_S:
            self._bar.update(self._task, advance=self._pending, refresh=True)
            self._pending, self._drawn = 0, now
