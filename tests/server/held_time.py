"""Time of the event loop, which a test moves itself, so that no timer depends on the machine's speed."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_HANGS_S: Final = 60.0
"""Seconds of real time after which a test hangs; time passes again then, so that its tasks end."""


class HeldTime:
    """Time of the running event loop."""

    def __init__(self, real: Callable[[], float]) -> None:
        self.now = self._began = real()
        self._real = real

    def time(self) -> float:
        """Returns the loop's time."""
        return self.now + max(self._real() - self._began - _HANGS_S, 0.0)

    def check(self) -> None:
        """Raises an error if the test hangs."""
        if self._real() - self._began > _HANGS_S:
            raise TimeoutError("something that the test waits for did not happen while time was held")

    async def skip(self, seconds: float) -> None:
        """Lets this time pass, and lets all tasks go on whose timers have ended."""
        self.now += seconds
        for _ in range(20):
            await asyncio.sleep(0)

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits, while no time passes, for something that another task or the system brings about."""
        while not condition():
            self.check()
            await asyncio.sleep(0)


@contextmanager
def held_time() -> Iterator[HeldTime]:
    """Stops the running event loop's time within the block. Later, time goes on from there."""
    loop = asyncio.get_running_loop()
    real = loop.time
    held = HeldTime(real)
    loop.time = held.time
    try:
        yield held
        held.check()
    finally:
        ahead = max(held.time() - real(), 0.0)
        loop.time = lambda: real() + ahead
