"""Progress of a batch on stderr: a bar on a terminal, otherwise a line from time to time."""

import time
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ....terminal.text import print_status
from .run import Counts

_DRAW_S: Final = 0.25
"""Minimum seconds between two drawings of the bar."""

_LINE_S: Final = 10.0
"""Seconds between two lines, if stderr is not a terminal."""


class BatchProgress:
    """Shows lines, tokens per second and the time left during a `with` block.

    Args:
      total: Number of lines of the input.
      num_done: Number of lines that earlier runs have finished.
    """

    def __init__(self, total: int, num_done: int) -> None:
        self._total = total
        self._num_done = num_done
        self._began = self._shown_at = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("batch"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("batch", total=total, completed=num_done, speed=0.0)

    def __enter__(self) -> "BatchProgress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self) -> None:
        """Starts the clock for speeds, once the model is loaded."""
        self._began = time.monotonic()

    def show(self, counts: Counts) -> None:
        """Shows the progress, at most once per interval."""
        now = time.monotonic()
        if now - self._shown_at < (_LINE_S if self._bar.disable else _DRAW_S):
            return
        self._shown_at = now
        done = self._num_done + counts.num_lines
        if self._bar.disable:
            print_status(f"{done:,} of {self._total:,} lines, {self.speed(counts):,.0f} tokens per second")
        else:
            self._bar.update(self._task, completed=done, speed=self.speed(counts), refresh=True)

    def speed(self, counts: Counts) -> float:
        """Returns the number of generated tokens per second."""
        return counts.generated_tokens / max(time.monotonic() - self._began, 1e-3)
