"""Sends requests in an open loop, at set times, or in a closed loop, with a set concurrency."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

type Send = Callable[[int, float], Coroutine[Any, Any, None]]
"""Sends a request and waits for its response, without raising.

Args: the request's number, and the time when it was due, in seconds of `time.perf_counter`.
"""


async def send_at(times: Sequence[float], send: Send) -> None:
    """Sends each request at its time, whether or not others have a response (open loop).

    Args:
      times: Rising times in seconds from now.
      send: Sends one request.
    """
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, due in enumerate(times):
            if (wait := start + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(send(number, start + due))


async def send_in_turn(count: int, concurrency: int, send: Send) -> None:
    """Keeps `concurrency` requests open: the next one is sent when one has its response (closed loop)."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await send(number, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, count)):
            group.create_task(work())
