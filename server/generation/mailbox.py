"""A queue between callbacks and one reader on the same event loop."""

import asyncio
from collections import deque


class Mailbox[Item]:
    """Items in order. A reader that is cancelled while it waits loses nothing.

    `asyncio.Queue` with `asyncio.timeout` does the same, but sets a timer for each item. Here one timer serves all
    waits of a reader.

    Attributes:
      has_reader: Whether the reader waits for an item, or was cancelled while it did.
    """

    def __init__(self) -> None:
        self.has_reader = False
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._waits_since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Number of items that were not taken."""
        return len(self._items)

    def put(self, item: Item) -> None:
        """Adds an item, and wakes the reader."""
        self._items.append(item)
        self._wake()

    async def get(self, timeout_s: float | None) -> Item | None:
        """Takes the next item, or returns None after the timeout, which is the same in all calls; None waits forever.

        If there is an item already, other tasks get a turn first: a reader that has fallen behind must not block them.
        """
        self.has_reader = True
        if self._items:
            await asyncio.sleep(0)
        else:
            await self._wait(timeout_s)
        self.has_reader = False
        return self._items.popleft() if self._items else None

    def close(self) -> None:
        """Cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _wait(self, timeout_s: float | None) -> None:
        """Returns when there is an item, or after the timeout."""
        loop = asyncio.get_running_loop()
        if self._timer is None and timeout_s is not None:
            self._set_timer(timeout_s, timeout_s)
        self._waiter, self._waits_since = loop.create_future(), loop.time()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_timer(self, seconds: float, timeout_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timer, timeout_s)

    def _on_timer(self, timeout_s: float) -> None:
        """Wakes a reader that has waited for the timeout; sets the timer again for one that has waited less."""
        self._timer = None
        if self._waiter is None:
            return
        left = self._waits_since + timeout_s - asyncio.get_running_loop().time()
        if left > 0:
            self._set_timer(left, timeout_s)
        else:
            self._wake()
