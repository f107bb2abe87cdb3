"""Sends requests to something: at set times, or as many at a time as are allowed."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

type Send = Callable[[int, float], Coroutine[Any, Any, None]]
"""Sends the request of this number and waits for its answer; is told when it was to set out, in seconds of
`time.perf_counter`. It does not raise."""


async def send_at(times: Sequence[float], send: Send) -> None:
    """An open loop: each request sets out at its time, whatever became of the others.

    Args:
      times: seconds from now, rising.
    """
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number, due in enumerate(times):
            if (wait := start + due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(send(number, start + due))


async def send_in_turn(count: int, concurrency: int, send: Send) -> None:
    """A closed loop: the next request sets out when one of `concurrency` has been answered."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await send(number, time.perf_counter())

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, count)):
            group.create_task(work())
