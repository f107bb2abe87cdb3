"""Work that outlives the HTTP request which began it."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Background:
    """Holds tasks until they end: the event loop by itself may forget those that nobody holds."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """
        Args:
          name: unique among the work that goes on.
        """
        task = asyncio.create_task(work)
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name))

    @property
    def is_busy(self) -> bool:
        """Whether any work goes on."""
        return bool(self._tasks)

    def is_running(self, name: str) -> bool:
        return name in self._tasks

    async def wait(self, name: str) -> None:
        """Returns when the work of this name, which is running, has ended."""
        await asyncio.wait([self._tasks[name]])
