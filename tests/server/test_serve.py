"""The life of the process around the engine: ready, asked to end, dead."""

import asyncio
import socket
from collections.abc import Callable

import httpx
import pytest
import uvicorn
from fake_engine import FakeEngine
from roost.engine import CheckpointError, ConfigError
from roost.server import serve as serve_module
from roost.server.app import create_app
from roost.server.serve import _listen, _run
from roost.server.service import Service

LONG = {"prompt": "a", "max_tokens": 1_000_000, "ignore_eos": True}


class Process:
    """What `roost serve` runs after it has read its settings."""

    def __init__(self, engine: FakeEngine, service: Service, announce: Callable[[], None] = lambda: None) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(create_app(service), lifespan="off", log_config=None))
        self.task = asyncio.create_task(_run(engine, self.server, listener, announce))

    async def end(self) -> BaseException | None:
        async with asyncio.timeout(5):
            return await self.task


async def test_it_answers_before_the_engine_is_ready(engine: FakeEngine, service: Service) -> None:
    engine.ready.clear()
    announced = asyncio.Event()
    process = Process(engine, service, announced.set)
    async with httpx.AsyncClient(base_url=process.url) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 503
        assert not announced.is_set()
        engine.ready.set()
        await asyncio.wait_for(announced.wait(), 5)
        assert (await client.get("/health/ready")).status_code == 200
    process.server.should_exit = True
    assert await process.end() is None
    assert engine.stopped


async def test_a_load_that_fails_ends_it(engine: FakeEngine, service: Service) -> None:
    engine.ready.clear()
    process = Process(engine, service)
    await asyncio.sleep(0.05)
    engine.failure = CheckpointError("model.safetensors: no tensor lm_head")
    engine.ready.set()
    assert await process.end() is engine.failure


async def test_an_engine_that_dies_ends_it(engine: FakeEngine, service: Service) -> None:
    process = Process(engine, service)
    async with httpx.AsyncClient(base_url=process.url) as client:
        async with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            engine.failure = RuntimeError("out of memory")
            rest = [line async for line in lines]
        assert '"error"' in rest[-2]
    assert await process.end() is engine.failure


async def test_asked_to_end_it_gives_requests_some_time(
    engine: FakeEngine, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_module, "GRACE_S", 0.3)
    process = Process(engine, service)
    async with httpx.AsyncClient(base_url=process.url) as client:
        async with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response:
            lines = response.aiter_lines()
            await anext(lines)
            process.server.should_exit = True
            rest = [line async for line in lines]
        assert '"code":"engine_unavailable"' in rest[-2]
    assert len(rest) > 10
    assert await process.end() is None


async def test_asked_to_end_while_loading(engine: FakeEngine, service: Service) -> None:
    engine.ready.clear()
    process = Process(engine, service)
    await asyncio.sleep(0.05)
    process.server.should_exit = True
    assert await process.end() is None
    assert not engine.stopped


def test_a_port_that_is_taken() -> None:
    with _listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: Address already in use$"):
            _listen("127.0.0.1", port)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:8000"):
        _listen("192.0.2.1", 8000)
