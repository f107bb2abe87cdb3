"""A server around the fake engine: within the process for most tests, on a loopback port where a socket matters."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import pytest
import uvicorn
from fake_engine import FakeEngine
from roost.server.app import create_app
from roost.server.chat import load_chat_format
from roost.server.defaults import GenerationDefaults
from roost.server.metrics import Metrics
from roost.server.prompts import PromptEncoder
from roost.server.served_model import ServedModel
from roost.server.service import Service
from roost.server.tokenizer import Tokenizer, synthetic_tokenizer

VOCAB_SIZE = 512

type LiveServer = Callable[[Service], AbstractAsyncContextManager[httpx.AsyncClient]]


def served_model(tokenizer: Tokenizer, defaults: GenerationDefaults | None = None) -> ServedModel:
    return ServedModel(
        id="counter",
        created=1_700_000_000,
        fingerprint="fp_test",
        tokenizer=tokenizer,
        chat_format=load_chat_format(None, tokenizer),
        defaults=defaults or GenerationDefaults(),
    )


def make_service(engine: FakeEngine, model: ServedModel, keep_alive_s: float = 15.0) -> Service:
    return Service(
        engine=engine,
        model=model,
        metrics=Metrics(lambda: engine.stats),
        prompts=PromptEncoder(model),
        keep_alive_s=keep_alive_s,
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Of 512 tokens; "a" to "z" are 4 to 29, "A" to "Z" 109 to 134, and a chat prompt ends with 108, a newline."""
    return synthetic_tokenizer(VOCAB_SIZE)


@pytest.fixture
def model(tokenizer: Tokenizer) -> ServedModel:
    return served_model(tokenizer)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(VOCAB_SIZE)


@pytest.fixture
def service(engine: FakeEngine, model: ServedModel) -> Service:
    return make_service(engine, model)


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client


@pytest.fixture
def live() -> LiveServer:
    """Starts uvicorn on a loopback port, with `service`; gives a client of it."""
    return _live


@asynccontextmanager
async def _live(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(service), lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url) as client:
            yield client
    finally:
        server.should_exit = True
        await serving
