"""Time of the event loop, which a test moves itself, so that no timer depends on the machine's speed."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class HeldTime:
    """Time of the running event loop."""

    def __init__(self, now: float) -> None:
        self.now = now

    async def skip(self, seconds: float) -> None:
        """Lets this time pass, and lets all tasks go on whose timers have ended."""
        self.now += seconds
        for _ in range(20):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits, while no time passes, for something that another task or the system brings about."""
        while not condition():
            await asyncio.sleep(0)


@contextmanager
def held_time() -> Iterator[HeldTime]:
    """Stops the running event loop's time within the block. Later, time goes on from there."""
    loop = asyncio.get_running_loop()
    real, held = loop.time, HeldTime(loop.time())
    loop.time = lambda: held.now
    try:
        yield held
    finally:
        ahead = held.now - real()
        loop.time = lambda: real() + max(ahead, 0.0)
