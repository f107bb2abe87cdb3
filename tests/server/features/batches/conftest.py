"""A server with files and batches, without a socket, and a worker of its lines."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fake_server import features_with
from roost.server.app import create_app
from roost.server.features.batches.batch_store import BatchStore
from roost.server.features.batches.open_batches import OpenBatches


@pytest.fixture
def store(batches: OpenBatches) -> BatchStore:
    return batches.store


@pytest.fixture
async def client(batches: OpenBatches) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(batches.service, features=features_with(batches.service, batches)))
    async with httpx.AsyncClient(transport=transport, base_url="http://roost") as client:
        yield client
