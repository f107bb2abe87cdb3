"""`roost` with a look at its event loop: run as a program, with a file's name in front of the usual arguments.

Every few milliseconds a timer on the loop asks how much CPU time the loop's thread has used since the timer last ran:
that is what the callbacks in between have cost, and what `/health` had to wait for. CPU time is counted in units of a
fixed piece of work, measured in the same process, so the counts depend neither on the machine's speed nor on what else
it does. Each occupancy above `REPORTED_UNITS` becomes a line of the file, as a whole number of units.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvicorn
from roost.server.__main__ import main

TICK_S: Final = 0.002
REPORTED_UNITS: Final = 10
ITERATIONS: Final = 100_000


def unit_s() -> float:
    """CPU seconds of a loop of `ITERATIONS` additions: the least of several trials."""

    def trial() -> float:
        began, total = time.thread_time(), 0
        for i in range(ITERATIONS):
            total += i
        return time.thread_time() - began

    return min(trial() for _ in range(20))


def watch(loop: asyncio.AbstractEventLoop, report: Callable[[int], None], unit: float) -> None:
    """Reports each occupancy of the loop."""
    last = 0.0

    def tick() -> None:
        nonlocal last
        used = (time.thread_time() - last) / unit
        if last and used > REPORTED_UNITS:
            report(round(used))
        last = time.thread_time()
        loop.call_later(TICK_S, tick)

    loop.call_soon(tick)


def install(path: Path) -> None:
    file, unit, factory_of = path.open("a"), unit_s(), uvicorn.Config.get_loop_factory

    def report(units: int) -> None:
        print(units, file=file, flush=True)

    def watched(self: uvicorn.Config) -> Callable[[], asyncio.AbstractEventLoop]:
        make: Any = factory_of(self) or asyncio.new_event_loop

        def factory() -> asyncio.AbstractEventLoop:
            loop: asyncio.AbstractEventLoop = make()
            watch(loop, report, unit)
            return loop

        return factory

    uvicorn.Config.get_loop_factory = watched  # type: ignore[method-assign]


if __name__ == "__main__":
    install(Path(sys.argv.pop(1)))
    main()
