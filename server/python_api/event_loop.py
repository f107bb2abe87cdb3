"""Event loop on a thread of its own, for callers without one and for notebooks, whose own loop is busy."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any


class EventLoopThread:
    """Runs coroutines on an event loop of its own."""

    def __init__(self) -> None:
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="roost-loop", daemon=True)
        self._thread.start()
        self._loop, self._stopped = self._started.result()

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Returns the result of a coroutine, which is cancelled if the caller is interrupted.

        Raises:
          Exception: Any error of the coroutine.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def stop(self) -> None:
        """Cancels what runs, and ends the thread. Callable more than once."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _serve(self) -> None:
        stopped = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stopped))
        await stopped.wait()
