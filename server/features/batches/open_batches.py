"""The files and batches of a running server, and the worker that runs lines."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from starlette.types import ASGIApp

from ...errors import kinds
from ...errors.request_errors import ApiError
from ...feature import OpenFeature, Opening, opened
from ...generation.service import Service
from .batch_store import BatchStore
from .batch_worker import BatchWorker
from .collector import BatchCollector
from .settings import BatchesSettings
from .tables import TABLES


class OpenBatches(OpenFeature):
    """Files and batches of a server.

    Attributes:
      service: Service that generates.
      store: Store of files and batches; None without a database.

    Args:
      tenants: Number of tenants.
    """

    def __init__(self, service: Service, store: BatchStore | None = None, tenants: int = 1) -> None:
        self.store = store
        self.collectors = () if store is None else (BatchCollector(lambda: store.totals, lambda: store.num_given_back),)
        self.service = service
        self._tenants = tenants
        self._worker: BatchWorker | None = None

    @property
    def is_stuck(self) -> bool:
        return self.store is not None and self.store.is_stuck

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        if self.store is not None:
            self._worker = BatchWorker(self.service, make_app(), self.store, self._tenants)
            self._worker.start()

    async def evacuate(self) -> None:
        if self._worker is not None:
            await self._worker.stop()

    async def close(self) -> None:
        if self.store is not None:
            self.store.close()


def open_batches(opening: Opening) -> OpenBatches:
    """Returns the feature of a server.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    settings = opening.settings_of(BatchesSettings)
    if settings is None or settings.store_address.kind == "memory":
        return OpenBatches(opening.service)
    database = opening.open_database(TABLES)
    store = BatchStore(database, settings.retention_s, int(settings.store_gib * 2**30))
    batches = OpenBatches(opening.service, store, opening.num_tenants)
    batches.database = database
    return batches


async def _store(batches: Annotated[OpenBatches, Depends(opened(OpenBatches))]) -> BatchStore:
    if batches.store is None:
        raise ApiError(kinds.NO_SUCH_URL, "files and batches need a database: start the server with --store")
    return batches.store


Batches = Annotated[BatchStore, Depends(_store)]
"""Store of files and batches for routes; 404 on a server without a database."""
