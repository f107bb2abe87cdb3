"""Tasks that outlive the HTTP request that started them."""

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

from ...generation.admission import admission
from ...tenants import tenant


class Background:
    """Keeps references to running tasks, since the event loop keeps only weak ones."""

    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a coroutine as a task, and returns the task.

        Args:
          name: Name of the task, unique among the tenant's running tasks.
        """
        task, key = asyncio.create_task(work), (tenant.get(), name)
        self._tasks[key] = task
        task.add_done_callback(partial(self._forget, key))
        own = admission.get()
        own.hold()
        task.add_done_callback(lambda _: own.release())
        return task

    @property
    def is_busy(self) -> bool:
        """Whether any task is running."""
        return bool(self._tasks)

    def is_running(self, name: str) -> bool:
        """Returns whether the tenant has a running task of this name."""
        return (tenant.get(), name) in self._tasks

    async def wait(self, name: str) -> None:
        """Waits until the tenant's running task of this name has ended."""
        await asyncio.wait([self._tasks[tenant.get(), name]])

    def _forget(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:  # otherwise a response that was given up has been adopted again
            del self._tasks[key]
