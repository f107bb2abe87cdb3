"""Server lifecycle: loading, ready, draining, stopped."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import uvicorn

from ...engine import EngineDeadError
from ..feature import OpenFeature
from ..generation.service import Service
from ..observability.logging import say
from ..settings import Settings
from ..terminal.exits import Signals

STOP_TIMEOUT_S: Final = 2.0
"""Maximum seconds in which the engine stops, and then the connections close. After that, they are cut off."""

_POLL_INTERVAL_S: Final = 0.05

_MAX_INTERVAL_S: Final = 1.0
"""Maximum seconds counted between two checks: while the whole process is frozen, a step cannot advance either."""


class Lifecycle:
    """Manages a service from loading to the end of its last request.

    Args:
      service: Service whose engine is not started yet.
      signals: Signals that the process has received.
      settings: Settings, of which the timeouts of shutdown and of a step count.
      on_ready: Called once, when the engine is ready.
      features: Open features.
    """

    def __init__(
        self,
        service: Service,
        signals: Signals,
        settings: Settings,
        on_ready: Callable[[], None] = lambda: None,
        features: Sequence[OpenFeature] = (),
    ) -> None:
        self._engine = service.engine
        self._requests = service.open_requests
        self._signals = signals
        self._settings = settings
        self._on_ready = on_ready
        self._features = features
        self._watchdog = Watchdog(settings.step_timeout)

    async def run(self) -> BaseException | None:
        """Loads, serves until a signal comes, and drains.

        Returns:
          The engine's failure, or None if a signal ended the process.
        """
        self._engine.start()
        loading = asyncio.ensure_future(self._engine.wait_ready())
        while not loading.done():
            if self._signals.first is not None:
                self._abandon(loading)
                return None
            await asyncio.sleep(_POLL_INTERVAL_S)
        if loading.exception() is not None:  # loading may raise anything
            return loading.exception()
        self._on_ready()
        return await self._serve() or await self._drain()

    def _abandon(self, loading: asyncio.Future[None]) -> None:
        say("shutting down: the model was still loading")
        loading.cancel()
        self._requests.is_draining, self._requests.is_accepting = True, False

    async def _serve(self) -> BaseException | None:
        """Waits for a signal. Returns the engine's failure, if that comes first."""
        while self._signals.first is None:
            if failure := await self._watch():
                return failure
        return None

    async def _drain(self) -> BaseException | None:
        """Fails readiness, refuses new requests after the lag, and waits until open ones end.

        Returns:
          The engine's failure, if any.
        """
        began = time.monotonic()
        self._requests.is_draining = True
        say(_drain_message(self._requests.count, self._is_busy, self._settings.drain_timeout))
        while (passed := time.monotonic() - began) < self._settings.drain_timeout:
            self._requests.is_accepting = passed < self._lag_s
            if not self._requests.is_accepting and not self._is_busy:
                break
            if failure := await self._watch():
                return failure
        self._requests.is_accepting = False
        for feature in self._features:
            await feature.evacuate()
        await self._engine.stop(STOP_TIMEOUT_S)
        return None

    @property
    def _is_busy(self) -> bool:
        """Whether a request is open, or a feature has unfinished work."""
        return self._requests.count > 0 or any(feature.is_busy for feature in self._features)

    @property
    def _lag_s(self) -> float:
        """Seconds in which new requests are still accepted; none after Ctrl-C, since no load balancer sends it."""
        return self._settings.drain_lag if self._signals.first == signal.SIGTERM else 0.0

    async def _watch(self) -> BaseException | None:
        """Waits until the next check, then checks the engine's thread. Returns the engine's failure, if any."""
        await asyncio.sleep(_POLL_INTERVAL_S)
        if self._watchdog.is_stuck(self._engine.check(), time.monotonic()):
            self._engine.fail(EngineDeadError(f"a step has taken more than {self._settings.step_timeout:g} s"))
        return self._engine.error


async def serve_until_stopped(
    lifecycle: Lifecycle,
    server: uvicorn.Server,
    listeners: list[socket.socket],
    features: Sequence[OpenFeature] = (),
    tasks: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
) -> BaseException | None:
    """Accepts requests, even before the engine is ready, until the engine's lifecycle ends.

    Args:
      features: Open features, which are closed after all connections.
      tasks: Coroutines that run until the end, when they are cancelled.

    Returns:
      The engine's failure, if any.
    """
    async with contextlib.AsyncExitStack() as stack:
        for feature in reversed(features):
            stack.push_async_callback(feature.close)
        for task in tasks:
            stack.callback(asyncio.create_task(task()).cancel)
        serving = asyncio.create_task(server.serve(sockets=listeners))
        try:
            return await lifecycle.run()
        finally:
            server.should_exit = True
            await serving


def _drain_message(num_requests: int, is_busy: bool, seconds: float) -> str:
    if not is_busy:
        return "shutting down: no request is open"
    requests = "1 open request" if num_requests == 1 else f"{num_requests} open requests"
    work = requests if num_requests else "responses in the background"
    return f"shutting down: draining {work} for at most {seconds:g} s; a second Ctrl-C or SIGTERM ends them immediately"


class Watchdog:
    """Measures how long the engine has been in one step.

    Args:
      limit_s: Seconds after which a device step is considered stuck.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._step: int | None = None
        self._spent_s = 0.0
        self._last_check: float | None = None

    def is_stuck(self, step: int | None, now: float) -> bool:
        """Checks the current step. Call it regularly.

        Args:
          step: Number of the engine's current step; None between two steps.
          now: Monotonic time in seconds.
        """
        passed = 0.0 if self._last_check is None else min(now - self._last_check, _MAX_INTERVAL_S)
        self._spent_s = self._spent_s + passed if step is not None and step == self._step else 0.0
        self._step, self._last_check = step, now
        return self._spent_s >= self._limit_s
