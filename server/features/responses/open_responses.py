"""The stored responses of a running server, and the tasks that generate them."""

from collections.abc import Callable
from math import inf
from typing import Annotated, Final

from fastapi import Depends
from starlette.types import ASGIApp

from ...database.address import StoreAddress
from ...feature import OpenFeature, Opening, opened
from ...generation.service import Service
from ...observability.request_metrics import RowCollector
from ...storage.objects import Bounds
from ...storage.worker import Worker
from .adoption import AdoptionKind
from .checkpoint_files import CheckpointFiles
from .checkpointer import Checkpointer
from .response_store import ResponseStore
from .response_table import TABLES
from .settings import ResponsesSettings

_MEMORY_ROWS: Final = 1000
_MEMORY_BYTES: Final = 64 * 2**20
_MIN_MEMORY_BYTES: Final = 2**20
"""Limits on responses and on conversations in memory: rows of each tenant, bytes of all together, and the least bytes
of each tenant."""

_MEMORY: Final = StoreAddress("memory")


class OpenResponses(OpenFeature):
    """Responses of a server.

    Attributes:
      service: Service that generates them.
      store: Store of the responses.

    Args:
      address: Address of the store. Clients see only its kind.
      checkpointer: Takes checkpoints of running responses, if there is a folder for them.
    """

    def __init__(
        self,
        service: Service,
        store: ResponseStore,
        address: StoreAddress = _MEMORY,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.service = service
        self.store = store
        self.facts = {"store": address.kind}
        self.operator_facts = {"store_address": str(address)}
        self.collectors = (RowCollector(store.stats.rows),)
        self.database = store.database if store.is_shared else None
        self._checkpointer = checkpointer

    @property
    def is_busy(self) -> bool:
        return bool(self.store.tasks)

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        if self._checkpointer is not None:
            self._checkpointer.start()
        Worker(AdoptionKind(self.service, self.store), self.store.leases).start()

    async def evacuate(self) -> None:
        if self._checkpointer is not None:
            await self._checkpointer.evacuate()
        else:
            await self.store.hand_over_streams()

    async def close(self) -> None:
        await self.store.close()


def open_responses(opening: Opening) -> OpenResponses:
    """Returns the feature of a server, whose store is in memory unless the settings name another.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    service, settings = opening.service, opening.settings_of(ResponsesSettings)
    database = opening.open_database(TABLES)
    if settings is None or not database.is_shared:
        num_bytes = max(_MEMORY_BYTES // opening.num_tenants, _MIN_MEMORY_BYTES)
        return OpenResponses(service, ResponseStore(database, inf, bounds=Bounds(_MEMORY_ROWS, num_bytes)))
    store, checkpointer = ResponseStore(database, settings.retention_s, settings.adopt_after), None
    if settings.state_store is not None:
        store.files = CheckpointFiles(settings.state_store, service.state_key, store.stats)
        rate = settings.checkpoint_mib_per_s * 2**20
        limits = settings.checkpoint_seconds, rate, settings.evacuate_seconds
        checkpointer = Checkpointer(service.engine, store, store.files, *limits)
    return OpenResponses(service, store, opening.address, checkpointer)


Responses = Annotated[OpenResponses, Depends(opened(OpenResponses))]
"""Open feature of routes."""
