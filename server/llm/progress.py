"""Progress bars of `LLM`, in a terminal or in a notebook."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress_bar(total: int, *, is_shown: bool) -> Iterator[Callable[[], None]]:
    """Shows a bar in a notebook or a terminal; yields a function that advances it by one, on any thread."""
    console = Console(stderr=True)
    is_shown = is_shown and total > 0
    if is_shown and console.is_jupyter:
        yield NotebookBar(total).advance
        return
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (is_shown and console.is_terminal)) as progress:
        bar = progress.add_task("", total=total)
        yield lambda: progress.advance(bar)


class NotebookBar:
    """A bar below a notebook's cell.

    Rich's own needs ipywidgets, and its thread and the event loop's break what a widget records of the cell's output.

    Args:
      total: Number of prompts.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._num_done = self._percent = 0
        display = importlib.import_module("IPython.display").display
        self._handle = display(self._content(), raw=True, display_id=True)

    def advance(self) -> None:
        """Counts a prompt, and shows it if that is another percent."""
        self._num_done += 1
        percent = 100 * self._num_done // self._total
        if percent > self._percent:
            self._percent = percent
            self._handle.update(self._content(), raw=True)

    def _content(self) -> dict[str, Any]:
        text = f"prompts {self._num_done}/{self._total}"
        bar = f'<progress max="{self._total}" value="{self._num_done}"></progress>'
        return {"text/plain": text, "text/html": f"{bar} {text}"}
