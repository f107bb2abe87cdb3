"""`roost` with a monitored event loop and engine: a program whose first argument is a file, before the usual ones.

Every few milliseconds a timer on the loop reads how much CPU time the loop's thread has used since the previous run:
the cost of the callbacks in between, for which `/health` had to wait. The engine's thread reports the same at the end
of each step: the time for which other requests had to wait. CPU time is counted in units of a fixed piece of work,
measured in the same process, so that the counts depend neither on the machine's speed nor on its load. Each occupancy
above `REPORTED_UNITS` becomes a line of the file: `loop` or `engine`, and a number of units.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvicorn
from roost.engine.engine_core import EngineCore
from roost.server.__main__ import main

TICK_S: Final = 0.002
REPORTED_UNITS: Final = 10
ITERATIONS: Final = 100_000


def unit_s() -> float:
    """Returns the CPU seconds of `ITERATIONS` additions: the minimum of several trials."""

    def trial() -> float:
        began, total = time.thread_time(), 0
        for i in range(ITERATIONS):
            total += i
        return time.thread_time() - began

    return min(trial() for _ in range(20))


def watch_loop(loop: asyncio.AbstractEventLoop, report: Callable[[float], None]) -> None:
    """Reports the CPU seconds between two runs of a timer."""
    last = 0.0

    def tick() -> None:
        nonlocal last
        if last:
            report(time.thread_time() - last)
        last = time.thread_time()
        loop.call_later(TICK_S, tick)

    loop.call_soon(tick)


def watch_loops(report: Callable[[float], None]) -> None:
    """Monitors each event loop that the server creates."""
    factory_of = uvicorn.Config.get_loop_factory

    def watched(self: uvicorn.Config) -> Callable[[], asyncio.AbstractEventLoop]:
        make: Any = factory_of(self) or asyncio.new_event_loop

        def factory() -> asyncio.AbstractEventLoop:
            loop: asyncio.AbstractEventLoop = make()
            watch_loop(loop, report)
            return loop

        return factory

    uvicorn.Config.get_loop_factory = watched  # type: ignore[method-assign]


def watch_engine(report: Callable[[float], None]) -> None:
    """Reports the CPU seconds from the end of a step to the end of the next one."""
    step, last = EngineCore.step, 0.0

    def watched(self: EngineCore) -> Any:
        nonlocal last
        outputs = step(self)
        if last:
            report(time.thread_time() - last)
        last = time.thread_time()
        return outputs

    EngineCore.step = watched  # type: ignore[method-assign]


def install(path: Path) -> None:
    file, unit = path.open("a"), unit_s()

    def reporter(who: str) -> Callable[[float], None]:
        def report(seconds: float) -> None:
            if (units := seconds / unit) > REPORTED_UNITS:
                print(who, round(units), file=file, flush=True)

        return report

    watch_loops(reporter("loop"))
    watch_engine(reporter("engine"))


if __name__ == "__main__":
    install(Path(sys.argv.pop(1)))
    main()
