"""Work that outlives the HTTP request which began it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from ..tenancy.memory import hold
from ..tenancy.tenant import tenant


class Background:
    """Holds tasks until they end: the event loop by itself may forget those that nobody holds."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """
        Args:
          name: unique among the tenant's work that goes on.
        """
        task, key = asyncio.create_task(work), (tenant.get(), name)
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key))
        release = hold()
        task.add_done_callback(lambda _: release())

    @property
    def is_busy(self) -> bool:
        """Whether any work goes on."""
        return bool(self._tasks)

    def is_running(self, name: str) -> bool:
        return (tenant.get(), name) in self._tasks

    async def wait(self, name: str) -> None:
        """Returns when the work of this name, which is running, has ended."""
        await asyncio.wait([self._tasks[tenant.get(), name]])
