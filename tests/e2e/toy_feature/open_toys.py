"""The toys of a running server, and the task that winds them up."""

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp

from ...database.database import Database, open_database
from ...feature import OpenFeature, Opening
from .collector import ToyCollector
from .settings import ToySettings
from .tables import TABLES


class OpenToys(OpenFeature):
    """Toys of a server, which has a database if it has settings."""

    def __init__(self, greeting: str = "", database: Database | None = None) -> None:
        self.greeting = greeting
        self.database = database
        self.wound_up = asyncio.Event()
        self.collectors = (ToyCollector(lambda: int(self.wound_up.is_set())),)

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        self._task = asyncio.create_task(self._wind_up())

    async def _wind_up(self) -> None:
        self.wound_up.set()

    async def close(self) -> None:
        if self.database is not None:
            self.database.close()


def open_toys(opening: Opening) -> OpenToys:
    """Returns the feature of a server."""
    settings = opening.settings_of(ToySettings)
    if settings is None:
        return OpenToys()
    return OpenToys(settings.toy_greeting, open_database(settings.store_address, TABLES))
