"""A server around the fake engine: its parts, and uvicorn on a loopback port for where a socket matters."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import uvicorn
from fake_engine import FakeEngine
from roost.server.app import create_app, open_features
from roost.server.constraints.grammar_compiler import GrammarCompiler
from roost.server.feature import OpenFeature, Opening
from roost.server.generation.admission import Admissions
from roost.server.generation.prompts import PromptEncoder
from roost.server.generation.service import Limits, Service
from roost.server.http.auth import Access
from roost.server.http.connection import LimitedConnection, OpenConnections
from roost.server.observability.metrics import Metrics
from roost.server.text.chat_template import load_chat_format
from roost.server.text.served_model import GenerationDefaults, ServedModel
from roost.server.text.tokenizer import Tokenizer
from starlette.types import ASGIApp

VOCAB_SIZE = 512

PATIENCE_S = 60
"""Seconds after which clients of a port give up, and their idle connections end, however busy the machine is."""


def served_model(
    tokenizer: Tokenizer, defaults: GenerationDefaults | None = None, max_tokens_limit: int | None = None
) -> ServedModel:
    return ServedModel(
        id="counter",
        created=1_700_000_000,
        fingerprint="fp_test",
        tokenizer=tokenizer,
        chat_format=load_chat_format(None, tokenizer),
        defaults=defaults or GenerationDefaults(),
        max_tokens_limit=max_tokens_limit,
    )


def make_service(
    engine: FakeEngine, model: ServedModel, keep_alive_s: float = 15.0, request_timeout_s: float = math.inf
) -> Service:
    return Service(
        engine=engine,
        model=model,
        metrics=Metrics(lambda: engine.stats),
        prompts=PromptEncoder(model),
        grammars=GrammarCompiler(model.tokenizer, model.end_token_ids),
        limits=Limits(keep_alive_s=keep_alive_s, request_timeout_s=request_timeout_s),
    )


def limited(service: Service, max_body_bytes: int, tenants: int = 1) -> Service:
    """Returns a service with budgets of the smallest size for bodies of this size."""
    return replace(service, admissions=Admissions(max_body_bytes, max_kept_bytes=0, tenants=tenants))


def features_with(service: Service, *own: OpenFeature) -> list[OpenFeature]:
    """Returns all features, open, some of which are the test's own."""
    kinds = set(map(type, own))
    return [*own, *(each for each in open_features(Opening(service)) if type(each) not in kinds)]


def client_of(app: ASGIApp, base_url: str = "http://roost", **options: Any) -> httpx.AsyncClient:
    """Returns a client that reaches an application without a socket."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=base_url, **options)


@asynccontextmanager
async def live(
    service: Service,
    stall_s: float | None = None,
    features: Sequence[OpenFeature] | None = None,
    access: Access | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """Runs uvicorn on a loopback port; gives a client of it.

    Args:
      features: Open features of the application.
      stall_s: after which clients that read nothing are dropped; the system's buffers are small then.
      access: Keys of the application; None for none.
    """
    connections = OpenConnections(4096)
    http = partial(LimitedConnection, stall_s=60.0 if stall_s is None else stall_s, connections=connections)
    listener = socket.create_server(("127.0.0.1", 0))
    if stall_s is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    app = create_app(service, access or Access(), features)
    config = uvicorn.Config(app, http=http, lifespan="off", log_config=None, timeout_keep_alive=PATIENCE_S)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits for something that another task brings about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
