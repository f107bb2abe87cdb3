"""The tenant on whose behalf code runs, the owner of the request's API key; and what tenants share fairly.

`Workers` are threads for work that would block the event loop. `ThreadPoolExecutor` alone runs functions in order of
submission, independent of the tenant.
"""

import asyncio
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, Final

tenant: Final[ContextVar[str]] = ContextVar("tenant", default="")
"""Name of the current request's tenant; "" for all requests if the server has no keys."""


class TenantLocks:
    """A lock per tenant, so that costly work waits only for work of the same tenant, in order of arrival."""

    def __init__(self) -> None:
        self._locks = defaultdict[str, asyncio.Lock](asyncio.Lock)

    def hold(self) -> asyncio.Lock:
        """Returns the current tenant's lock, for a `with` block."""
        return self._locks[tenant.get()]


class Turns[Item]:
    """Items of tenants. Tenants take turns; items of one tenant keep their order."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[Item]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, owner: str, item: Item) -> None:
        """Adds the last item of a tenant."""
        self._waiting.setdefault(owner, deque()).append(item)

    def put_back(self, owner: str, item: Item) -> None:
        """Adds an item in front of its tenant's others."""
        self._waiting.setdefault(owner, deque()).appendleft(item)

    def take(self, may_go: Callable[[str, Item], bool] = lambda _, __: True) -> tuple[str, Item] | None:
        """Removes and returns the next item with its tenant.

        Args:
          may_go: Returns whether a tenant may have its turn, given its next item. Otherwise it keeps its place.

        Returns:
          None if no such tenant has an item.
        """
        owner = next((owner for owner, items in self._waiting.items() if may_go(owner, items[0])), None)
        if owner is None:
            return None
        item = self._waiting[owner].popleft()
        if self._waiting[owner]:
            self._waiting.move_to_end(owner)
        else:
            del self._waiting[owner]
        return owner, item


_NUM_THREADS: Final = 3
"""Number of threads. They share one interpreter, so more threads would only take more memory."""


class WorkersClosedError(RuntimeError):
    """The workers were closed before the function started."""


class Workers:
    """Runs functions on threads. Tenants take turns; functions of one tenant start in order of arrival.

    If there are several tenants, none occupies all threads. An instance belongs to one event loop.

    Args:
      tenants: Number of tenants.
      num_threads: Number of functions that run at the same time.
      name: Prefix of the threads' names.
    """

    def __init__(self, tenants: int = 1, num_threads: int = _NUM_THREADS, name: str = "worker") -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._num_free = num_threads
        self._max_per_tenant = num_threads - 1 if tenants > 1 else num_threads
        self._running: Counter[str] = Counter()
        self._waiting: Turns[tuple[asyncio.Future[Any], Callable[[], Any], Callable[[], None]]] = Turns()
        self._is_closed = False

    async def run[T](self, work: Callable[[], T]) -> T:
        """Runs a function on a thread and returns its result. A call cancelled before it starts never runs.

        Raises:
          Exception: The exception that `work` raised.
          WorkersClosedError: The workers were closed before `work` started.
        """
        context = copy_context()
        return await self.submit(lambda: context.run(work))

    def submit[T](self, work: Callable[[], T], on_start: Callable[[], None] = lambda: None) -> asyncio.Future[T]:
        """Returns the future result of a function on a thread. Cancelled before the function starts, it never runs.

        Args:
          on_start: Called on the event loop once the function has a thread.

        Raises:
          WorkersClosedError: The workers are closed.
        """
        if self._is_closed:
            raise WorkersClosedError
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.add(tenant.get(), (done, work, on_start))
        self._start()
        return done

    def close(self) -> None:
        """Fails waiting and later calls. Running functions continue."""
        self._is_closed = True
        while found := self._waiting.take():
            _, (done, *_) = found
            if not done.done():
                done.set_exception(WorkersClosedError())
        self._threads.shutdown(wait=False)

    def _start(self) -> None:
        while self._num_free and (found := self._waiting.take(self._may_run)) is not None:
            owner, (done, work, on_start) = found
            if not done.done():
                on_start()
                self._run_on_thread(owner, done, work)

    def _may_run(self, owner: str, _: object) -> bool:
        return self._running[owner] < self._max_per_tenant

    def _run_on_thread(self, owner: str, done: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        loop = asyncio.get_running_loop()
        self._num_free -= 1
        self._running[owner] += 1

        def report(result: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop was closed before the result arrived
                loop.call_soon_threadsafe(self._finish, owner, done, result)

        self._threads.submit(work).add_done_callback(report)

    def _finish(self, owner: str, done: asyncio.Future[Any], result: Future[Any]) -> None:
        self._num_free += 1
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        if done.done():
            pass  # the caller was cancelled
        elif (error := result.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(result.result())
        self._start()
