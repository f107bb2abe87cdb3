"""A server and its lifecycle, around the fake engine."""

import asyncio
import socket
from collections.abc import Callable, Sequence

import httpx
import uvicorn
from fake_server import PATIENCE_S
from roost.server.app import create_app, open_features
from roost.server.feature import OpenFeature, Opening
from roost.server.generation.service import Service
from roost.server.run.lifecycle import Lifecycle, serve_until_stopped
from roost.server.settings import load_settings
from roost.server.terminal.exits import Signals

LONG = {"prompt": "a", "max_tokens": 1_000_000, "ignore_eos": True}


class Process:
    """A server and its lifecycle, as `roost serve` runs them."""

    def __init__(
        self,
        service: Service,
        announce: Callable[[], None] = lambda: None,
        lag_s: float = 0.0,
        drain_s: float = 60.0,
        step_s: float = 60.0,
        features: Sequence[OpenFeature] | None = None,
    ) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.signals = Signals()
        features = open_features(Opening(service)) if features is None else features
        app = create_app(service, features=features)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=PATIENCE_S))
        settings = load_settings({"drain_lag": lag_s, "drain_timeout": drain_s, "step_timeout": step_s})
        lifecycle = Lifecycle(service, self.signals, settings, announce, features)
        self.task = asyncio.create_task(serve_until_stopped(lifecycle, server, [listener], features))

    def client(self) -> httpx.AsyncClient:
        """Returns a client of the server."""
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_S)

    async def last_event(self, fail: Callable[[], None]) -> str:
        """Starts a stream, calls `fail` after its first event, and returns its last event."""
        async with (
            self.client() as client,
            client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response,
        ):
            lines = response.aiter_lines()
            await anext(lines)
            fail()
            return [line async for line in lines][-2]

    async def end(self) -> BaseException | None:
        async with asyncio.timeout(60):
            return await self.task
