"""Event loop on a separate thread, for callers without one and for notebooks, whose own loop is busy."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any


class _End:
    """Marker after the last item."""


class EventLoopThread:
    """Runs coroutines on an event loop in a separate thread."""

    def __init__(self) -> None:
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="roost-loop", daemon=True)
        self._thread.start()
        self._loop, self._stopped = self._started.result()

    def run[T](self, work: Coroutine[Any, Any, T]) -> T:
        """Returns the result of a coroutine, which is cancelled if the caller is interrupted.

        Raises:
          Exception: Any error of the coroutine.
          CancelledError: The loop was stopped.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def iterate[T](self, items: AsyncGenerator[T]) -> Generator[T]:
        """Yields the items of an asynchronous generator, which is closed at the end.

        A task reads ahead, since a task that is cancelled with the loop closes the generator in order.

        Raises:
          Exception: Any error of the generator.
          CancelledError: The loop was stopped.
        """
        found: queue.SimpleQueue[T | _End] = queue.SimpleQueue()

        async def read() -> None:
            async with aclosing(items):
                async for item in items:
                    found.put(item)

        reading = asyncio.run_coroutine_threadsafe(read(), self._loop)
        reading.add_done_callback(lambda _: found.put(_End()))
        try:
            while not isinstance(item := found.get(), _End):
                yield item
            reading.result()
        finally:
            reading.cancel()

    def stop(self) -> None:
        """Cancels running coroutines, and ends the thread. Callable more than once."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _serve(self) -> None:
        stopped = asyncio.Event()
        self._started.set_result((asyncio.get_running_loop(), stopped))
        await stopped.wait()
