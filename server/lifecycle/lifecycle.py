"""The life of a served engine, as decisions over time: loading, ready, leaving, over."""

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...engine import EngineDeadError
from ..generation.service import Service
from ..observability.logging import say
from .signals import Signals
from .watchdog import Watchdog

LAST_STEP_S: Final = 2.0
"""How long the engine may take to stop, and then the connections to close; what is still there is cut off."""

_WATCH_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: in which new requests are still taken after SIGTERM, until the last ones are ended, and of one step."""

    lag_s: float
    drain_s: float
    step_s: float


class Life:
    """From the first second of loading to the last answer.

    Args:
      announce: called once, when requests are served.
    """

    def __init__(
        self, service: Service, signals: Signals, patience: Patience, announce: Callable[[], None] = lambda: None
    ) -> None:
        self._service = service
        self._engine = service.engine
        self._signals = signals
        self._patience = patience
        self._announce = announce
        self._watchdog = Watchdog(patience.step_s)

    async def run(self) -> BaseException | None:
        """Returns when all is over: with the engine's failure, or None if a signal has ended it."""
        self._engine.start()
        loading = asyncio.ensure_future(self._engine.wait_ready())
        while not loading.done():
            if self._signals.first is not None:
                say("shutting down: the model was still loading")
                loading.cancel()
                requests = self._service.open_requests
                requests.is_draining, requests.is_accepting = True, False
                return None
            await asyncio.sleep(_WATCH_S)
        if loading.exception() is not None:  # the load may raise anything; it becomes the reason why the process ends
            return loading.exception()
        self._announce()
        while self._signals.first is None:
            await asyncio.sleep(_WATCH_S)
            self._watch()
            if self._engine.error is not None:
                return self._engine.error
        return await self._drain()

    async def _drain(self) -> BaseException | None:
        """Unready at once, closed after a while, over when the last answer is; what takes longer is cut short."""
        requests, began = self._service.open_requests, time.monotonic()
        requests.is_draining = True
        say(_about_drain(requests.count, self._service.is_busy, self._patience.drain_s))
        lag_s = self._patience.lag_s if self._signals.first == signal.SIGTERM else 0.0  # nobody balances load by Ctrl-C
        while (passed := time.monotonic() - began) < self._patience.drain_s:
            requests.is_accepting = passed < lag_s
            if not requests.is_accepting and not self._service.is_busy:
                break
            await asyncio.sleep(_WATCH_S)
            self._watch()
            if self._engine.error is not None:
                return self._engine.error
        requests.is_accepting = False
        await self._engine.stop(LAST_STEP_S)
        return None

    def _watch(self) -> None:
        """Gives the engine up where its thread is stuck, or will be."""
        if self._engine.unseen_error is not None and self._engine.error is None:
            self._engine.fail(self._engine.unseen_error)
        if self._watchdog.is_stuck(self._engine.current_step, time.monotonic()):
            self._engine.fail(EngineDeadError(f"a step has taken more than {self._patience.step_s:g} s"))


def _about_drain(num_requests: int, is_busy: bool, seconds: float) -> str:
    work = "1 open request" if num_requests == 1 else f"{num_requests} open requests"
    if not is_busy:
        return "shutting down: no request is open"
    work = work if num_requests else "responses in the background"
    return f"shutting down: draining {work} for at most {seconds:g} s; a second Ctrl-C or SIGTERM ends them at once"
