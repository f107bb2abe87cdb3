"""Items that come one by one to somebody who waits for them, both on the same event loop."""

import asyncio
from collections import deque


class Mailbox[Item]:
    """For one reader. Waiting may be cancelled and begun again: nothing is lost.

    What `asyncio.Queue` and `asyncio.timeout` do together, at a fraction of the price: there is one timer for as long
    as the reader's patience lasts, and not one for each item.
    """

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._waits_since = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many have come and were not taken."""
        return len(self._items)

    def put(self, item: Item) -> None:
        self._items.append(item)
        self._wake()

    async def get_all(self) -> list[Item]:
        """Takes all items that have come, as soon as there is one."""
        while not self._items:
            await self._wait()
        items = list(self._items)
        self._items.clear()
        return items

    async def get_within(self, patience_s: float | None) -> Item | None:
        """The same, but None if there is none in this time, which is the same in all calls; None waits for ever."""
        if not self._items:
            if self._alarm is None and patience_s is not None:
                self._set_alarm(patience_s, patience_s)
            await self._wait()
        return self._items.popleft() if self._items else None

    def close(self) -> None:
        """To be called by a reader with patience, at the end."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    async def _wait(self) -> None:
        """Until somebody wakes the reader."""
        loop = asyncio.get_running_loop()
        self._waiter, self._waits_since = loop.create_future(), loop.time()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _set_alarm(self, seconds: float, patience_s: float) -> None:
        self._alarm = asyncio.get_running_loop().call_later(seconds, self._ring, patience_s)

    def _ring(self, patience_s: float) -> None:
        """Wakes a reader who has waited for so long; for others, it rings again when they will have."""
        self._alarm = None
        if self._waiter is None:
            return
        left = self._waits_since + patience_s - asyncio.get_running_loop().time()
        if left > 0:
            self._set_alarm(left, patience_s)
        else:
            self._wake()
