"""The files and batches of a running server: their store, and the worker that runs lines."""

from collections.abc import Callable
from math import inf
from typing import Annotated, Final

from fastapi import Depends
from starlette.types import ASGIApp

from ...feature import OpenFeature, Opening, opened
from ...generation.service import Service
from ...observability.request_metrics import RowCollector
from ...storage.worker import Worker
from .batch_store import BatchStore
from .batch_table import TABLES, LineClaim
from .collector import batch_rows
from .line_worker import LineKind
from .settings import BatchesSettings

_MEMORY_BYTES: Final = 256 * 2**20
_MIN_MEMORY_BYTES: Final = 2**20
"""Maximum bytes of the files of all tenants in memory, and the least bytes of each tenant."""


class OpenBatches(OpenFeature):
    """Files and batches of a server.

    Attributes:
      service: Service that generates.
      store: Store of files and batches.

    Args:
      tenants: Number of tenants.
    """

    def __init__(self, service: Service, store: BatchStore, tenants: int = 1) -> None:
        self.store = store
        self.database = store.files.database if store.files.database.is_shared else None
        self.collectors = (RowCollector(lambda: batch_rows(store.totals, store.num_ended, store.leases.num_refusals)),)
        self.service = service
        self._tenants = tenants
        self._worker: Worker[LineClaim] | None = None

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        kind = LineKind(self.service, make_app(), self.store, self._tenants)
        self._worker = Worker(kind, self.store.leases, self.store.has_work)
        self._worker.start()

    async def evacuate(self) -> None:
        if self._worker is not None:
            await self._worker.stop()

    async def close(self) -> None:
        self.store.close()


def open_batches(opening: Opening) -> OpenBatches:
    """Returns the feature of a server, whose store is in memory unless the settings name another.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    settings = opening.settings_of(BatchesSettings)
    database = opening.open_database(TABLES)
    if settings is None or not database.is_shared:
        store = BatchStore(database, inf, max(_MEMORY_BYTES // opening.num_tenants, _MIN_MEMORY_BYTES))
    else:
        store = BatchStore(database, settings.retention_s, int(settings.store_gib * 2**30))
    return OpenBatches(opening.service, store, opening.num_tenants)


async def _store(batches: Annotated[OpenBatches, Depends(opened(OpenBatches))]) -> BatchStore:
    return batches.store


Batches = Annotated[BatchStore, Depends(_store)]
"""Store of files and batches for routes."""
