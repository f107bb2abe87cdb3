"""The parts of a server around the fake engine, and a client that reaches it without a socket."""

from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
from fake_engine import FakeEngine
from fake_server import VOCAB_SIZE, client_of, make_service, served_model
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.text.served_model import ServedModel
from roost.server.text.synthetic_tokenizer import synthetic_tokenizer
from roost.server.text.tokenizer import Tokenizer

_LIMITS = (
    "database.dialects.CONNECT_TIMEOUT_S",
    "features.responses.response_store._LAST_S",
    "features.usage.feature.REPLY_S",
    "storage.objects.REPLY_S",
    "storage.worker._LAST_S",
)
"""Seconds for connections and transactions with the store, which a busy machine may reach."""


@pytest.fixture(autouse=True)
def patient_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives connections and transactions a minute. Tests of a limit set their own."""
    for name in _LIMITS:
        with suppress(ImportError):  # a feature may have been deleted
            monkeypatch.setattr(f"roost.server.{name}", 60)


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
    async with client_of(create_app(service)) as client:
        yield client
