"""A worker of lines of batches, in the background of a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fake_server import features_with
from roost.server.app import create_app
from roost.server.features.batches.batch_table import LineClaim
from roost.server.features.batches.line_worker import LineKind, OpenLines
from roost.server.features.batches.open_batches import OpenBatches
from roost.server.storage.worker import Worker


def lines_of(worker: Worker[LineClaim]) -> OpenLines:
    """Returns the open lines of a worker."""
    kind = worker._kind
    assert isinstance(kind, LineKind)
    return kind.open_lines(worker._running.values())


@asynccontextmanager
async def working(batches: OpenBatches, tenants: int = 1) -> AsyncIterator[Worker[LineClaim]]:
    """Runs a replica's worker until the end of the `with` block."""
    assert batches.store is not None
    app = create_app(batches.service, features=features_with(batches.service, batches))
    worker = Worker(
        LineKind(batches.service, app, batches.store, tenants), batches.store.leases, batches.store.has_work
    )
    worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
