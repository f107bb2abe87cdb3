"""The stored responses of a running server, and the tasks that generate them."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from starlette.types import ASGIApp

from ...database.database import Database
from ...database.opening import open_database
from ...feature import OpenFeature, Opening, opened
from ...generation.service import Service
from .adoption import Adopter
from .background import Background
from .checkpoint_files import CheckpointFiles
from .checkpointer import Checkpointer, CheckpointSettings
from .collector import StoreCollector
from .durable_responses import DurableResponses
from .followers import Followers
from .memory_responses import MemoryResponses
from .response_store import ResponseStore
from .settings import ResponsesSettings
from .stats import StoreStats
from .tables import TABLES


class OpenResponses(OpenFeature):
    """Responses of a server.

    Attributes:
      service: Service that generates them.
      store: Store of the responses.
      background: Tasks that generate responses without a client.
      followers: Counts the streams of stored responses.

    Args:
      address: Address of the store, without a password.
      checkpointer: Takes checkpoints of running responses, if there is a folder for them.
    """

    def __init__(
        self,
        service: Service,
        store: ResponseStore | None = None,
        address: str = "memory:",
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.service = service
        self.store = MemoryResponses() if store is None else store
        self.background = Background()
        self.followers = Followers()
        self.facts = {"store": address}
        durable = self.store if isinstance(self.store, DurableResponses) else None
        self.collectors = () if durable is None else (StoreCollector(durable.stats),)
        self._durable = durable
        self._checkpointer = checkpointer

    @property
    def is_busy(self) -> bool:
        return self.background.is_busy

    @property
    def is_stuck(self) -> bool:
        return self._durable is not None and self._durable.is_stuck

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        if self._checkpointer is not None:
            self._checkpointer.start()
        if self._durable is not None:
            Adopter(self.service, self._durable, self.background).start()

    async def evacuate(self) -> None:
        if self._checkpointer is not None:
            await self._checkpointer.evacuate()
        elif self._durable is not None:
            await self._durable.hand_over_streams()

    async def close(self) -> None:
        if self._durable is not None:
            await self._durable.close()


def open_responses(opening: Opening) -> OpenResponses:
    """Returns the feature of a server, with a store if the settings name one.

    Raises:
      StoreUnavailableError: The database cannot be used.
    """
    service, settings = opening.service, opening.settings_of(ResponsesSettings)
    if settings is None or settings.store_address.kind == "memory":
        return OpenResponses(service)
    address = settings.store_address
    database = open_database(address, TABLES)
    store = _durable(database, settings)
    checkpointer = None
    if store.files is not None:
        rate = settings.checkpoint_mib_per_s * 2**20
        limits = CheckpointSettings(settings.checkpoint_seconds, rate, settings.evacuate_seconds)
        checkpointer = Checkpointer(service.engine, store, store.files, limits, opening.observers)
    responses = OpenResponses(service, store, str(address), checkpointer)
    responses.database = database
    return responses


def _durable(database: Database, settings: ResponsesSettings) -> DurableResponses:
    stats = StoreStats()
    files = _checkpoint_files(settings, stats)
    return DurableResponses(database, settings.retention_s, settings.adopt_after, files, stats)


def _checkpoint_files(settings: ResponsesSettings, stats: StoreStats) -> CheckpointFiles | None:
    if settings.state_store is None:
        return None
    key = settings.state_key
    return CheckpointFiles(settings.state_store, None if key is None else key.get_secret_value().encode(), stats)


Responses = Annotated[OpenResponses, Depends(opened(OpenResponses))]
"""Open feature of routes."""
