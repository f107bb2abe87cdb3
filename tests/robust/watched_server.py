"""`roost` with a monitored event loop and engine: a program whose first argument is a file, before the usual ones.

Every few milliseconds a timer on the loop reads how much CPU time the loop's thread has used since the previous run:
the cost of the callbacks in between, for which `/health` had to wait. The engine's thread reports the same at the end
of each step: the time for which other requests had to wait. CPU time is counted in units of a fixed piece of work,
measured in the same process, so that the counts depend neither on the machine's speed nor on its load. Each occupancy
above `REPORTED_UNITS` becomes a line of the file: `loop` or `engine`, and a number of units.

The tokens that the engine processes from the arrival of a victim's stream to its first token become a line as well:
`wait`, and their number. They are counted here, since the victim's own process may have to wait for a core.
"""

import asyncio
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvicorn
from roost.engine.engine_core import EngineCore
from roost.server.__main__ import main
from starlette.types import Message, Receive, Scope, Send

TICK_S: Final = 0.002
REPORTED_UNITS: Final = 10
ITERATIONS: Final = 100_000
VICTIM: Final = b"victim-"
"""Beginning of the ids of a victim's streams, which its client chooses."""

TEXT: Final = re.compile(rb'"content":"[^"]')


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

    uvicorn.Config.get_loop_factory = watched


def watch_streams(report: Callable[[int], None], work_done: Callable[[], int]) -> None:
    """Reports the tokens that the engine processes before the first token of each of a victim's streams.

    Args:
      work_done: Returns the number of tokens that the engine has processed so far.
    """
    load = uvicorn.Config.load

    def watched(self: uvicorn.Config) -> None:
        load(self)
        app = self.loaded_app

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            is_victim = dict(scope.get("headers", ())).get(b"x-request-id", b"").startswith(VICTIM)
            await app(scope, receive, until_text(send, report, work_done) if is_victim else send)

        self.loaded_app = run

    uvicorn.Config.load = watched


def until_text(send: Send, report: Callable[[int], None], work_done: Callable[[], int]) -> Send:
    """Returns a `send` that reports the tokens processed between this call and the first text."""
    began, is_first = work_done(), True

    async def watched(message: Message) -> None:
        nonlocal is_first
        if is_first and TEXT.search(message.get("body", b"")):
            is_first = False
            report(work_done() - began)
        await send(message)

    return watched


def watch_engine(report: Callable[[float], None]) -> Callable[[], int]:
    """Reports the CPU seconds from the end of a step to the end of the next one.

    Returns a function that returns the number of tokens that steps have processed.
    """
    step, last, num_tokens = EngineCore.step, 0.0, 0

    def watched(self: EngineCore) -> Any:
        nonlocal last, num_tokens
        outputs = step(self)
        num_tokens = self.stats.prompt_tokens + self.stats.generated_tokens
        if last:
            report(time.thread_time() - last)
        last = time.thread_time()
        return outputs

    EngineCore.step = watched
    return lambda: num_tokens


def install(path: Path) -> None:
    file, unit = path.open("a"), unit_s()

    def write(what: str, count: int) -> None:
        print(what, count, file=file, flush=True)

    def reporter(who: str) -> Callable[[float], None]:
        def report(seconds: float) -> None:
            if (units := seconds / unit) > REPORTED_UNITS:
                write(who, round(units))

        return report

    watch_loops(reporter("loop"))
    watch_streams(partial(write, "wait"), watch_engine(reporter("engine")))


if __name__ == "__main__":
    install(Path(sys.argv.pop(1)))
    main()
