"""Lets tasks begin in order of arrival, as the memory that they are going to take becomes free."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class ByteGate:
    """A number of bytes that tasks hold while they run. A task that wants more than all of them runs alone.

    Args:
      max_bytes: Maximum bytes that tasks hold together.

    Attributes:
      num_bytes: Bytes that tasks hold.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncGenerator[None]:
        """Waits until the bytes are free and all earlier tasks have theirs, and holds them."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, num_bytes))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.cancelled():  # the task was cancelled while it waited
                self._waiting = deque(each for each in self._waiting if each[0] is not turn)
            else:
                self.num_bytes -= num_bytes
            self._admit()

    def _admit(self) -> None:
        while self._waiting and (not self.num_bytes or self.num_bytes + self._waiting[0][1] <= self._max_bytes):
            turn, num_bytes = self._waiting.popleft()
            if not turn.cancelled():
                self.num_bytes += num_bytes
                turn.set_result(None)
