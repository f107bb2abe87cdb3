"""Features: a record of the fixed parts of a feature, and an object that exists while a server runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Final

from fastapi import APIRouter, Request
from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from .database.address import StoreAddress
from .database.database import Database, Pool, dialect_of, open_database
from .database.schema import Tables
from .features.index import modules_of
from .generation.service import Service
from .http.error_responses import ErrorShape
from .observability.request_metrics import Observer
from .settings import Settings

_MEMORY: Final = StoreAddress("memory")


@dataclass(frozen=True)
class Opening:
    """Resources with which a feature is opened.

    Attributes:
      service: Service that generates; its engine need not be ready.
      settings: Settings of the server; None opens the feature without a database and similar resources.
      num_tenants: Number of tenants.
    """

    service: Service
    settings: Settings | None = None
    num_tenants: int = 1

    @property
    def address(self) -> StoreAddress:
        """Address of the store."""
        return _MEMORY if self.settings is None else self.settings.store_address

    @cached_property
    def _pool(self) -> Pool:
        return Pool(dialect_of(self.address))

    def open_database(self, tables: Tables) -> Database:
        """Returns the store's database for a feature's tables. Features share its threads and connections.

        Raises:
          StoreUnavailableError: The database cannot be used.
        """
        return open_database(self.address, tables, self._pool)

    def settings_of[Kind: Settings](self, kind: type[Kind]) -> Kind | None:
        """Returns the settings with a feature's own ones; None if it is opened without settings."""
        if self.settings is None or isinstance(self.settings, kind):
            return self.settings
        raise TypeError(f"settings lack those of {kind.__name__}: use all_settings()")


class OpenFeature:
    """A feature of a running server. The default methods do nothing.

    Attributes:
      collectors: Collectors of its metrics.
      database: Its database, without which most of its requests fail; None if it has none.
      observers: Observers of all requests of the engine.
      facts: Its entries in `/server_info`.
      operator_facts: Its further entries in `/debug/server_info`, which needs an admin key.
    """

    collectors: Sequence[Collector] = ()
    database: Database | None = None
    observers: Sequence[Observer] = ()
    facts: Mapping[str, Any] = {}
    operator_facts: Mapping[str, Any] = {}

    @property
    def is_busy(self) -> bool:
        """Whether the feature has unfinished work that no open request is waiting for."""
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether a transaction would delay the exit of the process."""
        return self.database is not None and self.database.is_stuck

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        """Starts the feature's tasks. The engine must be ready.

        Args:
          make_app: Returns an application that trusts its caller, for requests that the server sends to itself.
        """

    async def evacuate(self) -> None:
        """Saves unfinished work for other replicas, before the engine stops."""

    async def close(self) -> None:
        """Closes the feature's resources. All connections must be closed before."""


def _open_nothing(_: Opening) -> OpenFeature:
    return OpenFeature()


@dataclass(frozen=True, slots=True)
class Feature:
    """A folder of `features`, as the rest of the server knows it.

    Attributes:
      name: Name of the folder.
      routers: Routes.
      admin_routers: Routes that need an admin key, and that are missing without one. Their paths have no parameters.
      public_paths: Paths that need no API key.
      unlimited_paths: Paths whose routes limit bodies themselves.
      path_hints: Hints what to use of the feature instead of paths of other servers, each with its paths;
        see `foreign_paths`.
      events: Models of the events of its streams, for `/openapi.json`.
      error_shape: Bodies of errors for its clients, if they have another shape than OpenAI's.
      tables: Its tables in a database; None if it has none.
      open: Opens it for a server.
      unused_collectors: Returns collectors that have counted nothing, for the reference of metrics.
    """

    name: str
    routers: Sequence[APIRouter] = ()
    admin_routers: Sequence[APIRouter] = ()
    public_paths: frozenset[str] = frozenset()
    unlimited_paths: frozenset[str] = frozenset()
    path_hints: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[Any] = ()
    error_shape: ErrorShape | None = None
    tables: Tables | None = None
    open: Callable[[Opening], OpenFeature] = _open_nothing
    unused_collectors: Callable[[], Sequence[Collector]] = field(default=tuple)


@cache
def load_features() -> tuple[Feature, ...]:
    """Returns the records of all features."""
    return tuple(module.FEATURE for module in modules_of("feature"))


def opened[Kind: OpenFeature](kind: type[Kind]) -> Callable[[Request], Kind]:
    """Returns a dependency of routes: the application's open feature of a kind."""

    async def find(request: Request) -> Kind:
        features: Sequence[OpenFeature] = request.app.state.features
        return next(each for each in features if isinstance(each, kind))

    return find  # type: ignore[return-value]
