"""The files and batches of a running server, and the worker that runs lines."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from starlette.types import ASGIApp

from ...database.opening import open_database
from ...errors import kinds
from ...errors.request_errors import ApiError
from ...feature import OpenFeature, Opening, opened
from ...generation.service import Service
from ...http.request_body import MAX_BODY_BYTES
from .batch_store import BatchStore
from .batch_worker import BatchWorker
from .collector import BatchCollector
from .tables import TABLES


class OpenBatches(OpenFeature):
    """Files and batches of a server.

    Attributes:
      service: Service that generates.
      store: Store of files and batches; None without a database.

    Args:
      max_body_bytes: Maximum bytes of a line's body.
    """

    def __init__(self, service: Service, store: BatchStore | None = None, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.store = store
        self.collectors = () if store is None else (BatchCollector(lambda: store.totals),)
        self.service = service
        self._max_body_bytes = max_body_bytes

    @property
    def is_stuck(self) -> bool:
        return self.store is not None and self.store.is_stuck

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        if self.store is not None:
            BatchWorker(self.service, make_app(), self.store, self._max_body_bytes).start()

    async def close(self) -> None:
        if self.store is not None:
            self.store.close()


def open_batches(opening: Opening) -> OpenBatches:
    """Returns the feature of a server.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    settings = opening.settings
    if settings is None or settings.store_address.kind == "memory":
        return OpenBatches(opening.service)
    store = BatchStore(open_database(settings.store_address, TABLES), settings.retention_s)
    return OpenBatches(opening.service, store, settings.max_body_bytes)


async def _store(batches: Annotated[OpenBatches, Depends(opened(OpenBatches))]) -> BatchStore:
    if batches.store is None:
        raise ApiError(kinds.NO_SUCH_URL, "files and batches need a database: start the server with --store")
    return batches.store


Batches = Annotated[BatchStore, Depends(_store)]
"""Store of files and batches for routes; 404 on a server without a database."""
