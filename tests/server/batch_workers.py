"""A worker of lines of batches, in the background of a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fake_server import features_with
from roost.server.app import create_app
from roost.server.features.batches.batch_worker import BatchWorker
from roost.server.features.batches.open_batches import OpenBatches


@asynccontextmanager
async def working(batches: OpenBatches, tenants: int = 1) -> AsyncIterator[BatchWorker]:
    """Runs a replica's worker until the end of the `with` block."""
    assert batches.store is not None
    app = create_app(batches.service, features=features_with(batches.service, batches))
    worker = BatchWorker(batches.service, app, batches.store, tenants=tenants)
    worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
