"""Worker threads for work that would block the event loop, shared fairly by tenants.

`ThreadPoolExecutor` alone runs functions in order of submission, whoever submits them.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Final

from .tenant import tenant

_NUM_THREADS: Final = 3
"""Number of threads. They share one interpreter, so more threads would only take more memory."""


class Workers:
    """Runs functions on threads. Tenants take turns; functions of one tenant start in order of arrival.

    If there are several tenants, none occupies all threads. An instance belongs to one event loop.

    Args:
      tenants: Number of tenants.
      num_threads: Number of functions that run at the same time.
    """

    def __init__(self, tenants: int = 1, num_threads: int = _NUM_THREADS) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="worker")
        self._num_free = num_threads
        self._max_per_tenant = num_threads - 1 if tenants > 1 else num_threads
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[tuple[asyncio.Future[Any], Callable[[], Any]]]] = OrderedDict()

    async def run[T](self, work: Callable[[], T]) -> T:
        """Runs a function on a thread and returns its result. A call cancelled before it starts never runs.

        Raises:
          Exception: The exception that `work` raised.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        context = copy_context()
        self._waiting.setdefault(tenant.get(), deque()).append((done, lambda: context.run(work)))
        self._start()
        return await done

    def _start(self) -> None:
        while self._num_free and (owner := self._next()) is not None:
            done, work = self._waiting[owner].popleft()
            self._waiting.move_to_end(owner)
            if not self._waiting[owner]:
                del self._waiting[owner]
            if not done.done():
                self._submit(owner, done, work)

    def _next(self) -> str | None:
        return next((owner for owner in self._waiting if self._running[owner] < self._max_per_tenant), None)

    def _submit(self, owner: str, done: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        self._num_free -= 1
        self._running[owner] += 1

        def finish(result: asyncio.Future[Any]) -> None:
            self._num_free += 1
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]
            error = result.exception()
            if done.done():
                pass  # the caller was cancelled
            elif error is not None:
                done.set_exception(error)
            else:
                done.set_result(result.result())
            self._start()

        asyncio.get_running_loop().run_in_executor(self._threads, work).add_done_callback(finish)
