"""Features: a record of what is fixed in one, and an object for as long as a server runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from .database.schema import Tables
from .features.index import modules_of
from .generation.service import Service
from .http.error_responses import ErrorShapes
from .observability.request_metrics import Observer
from .settings import Settings


@dataclass(frozen=True, slots=True)
class Opening:
    """Means with which a feature is opened.

    Attributes:
      service: Service that generates; its engine need not be ready.
      settings: Settings of the server; None opens the feature without a database and other means.
      observers: Observers of what the feature does.
      num_tenants: Number of tenants.
    """

    service: Service
    settings: Settings | None = None
    observers: Sequence[Observer] = ()
    num_tenants: int = 1

    def settings_of[Kind: Settings](self, kind: type[Kind]) -> Kind | None:
        """Returns the settings with a feature's own ones; None if it is opened without settings."""
        if self.settings is None or isinstance(self.settings, kind):
            return self.settings
        raise TypeError(f"settings lack those of {kind.__name__}: use all_settings()")


class OpenFeature:
    """A feature of a running server. What a feature doesn't override does nothing.

    Attributes:
      collectors: Collectors of its metrics.
      facts: Its entries in `/server_info`.
    """

    collectors: Sequence[Collector] = ()
    facts: Mapping[str, Any] = {}

    @property
    def is_busy(self) -> bool:
        """Whether work is unfinished that no open request waits for."""
        return False

    @property
    def is_stuck(self) -> bool:
        """Whether a thread would delay the end of the process."""
        return False

    def start(self, make_app: Callable[[], ASGIApp]) -> None:
        """Begins tasks, once the engine is ready.

        Args:
          make_app: Returns an application that trusts its caller, for requests that the server sends to itself.
        """

    async def evacuate(self) -> None:
        """Saves unfinished work for other replicas, before the engine stops."""

    async def close(self) -> None:
        """Closes what it has opened, once all connections are closed."""


def _open_nothing(_: Opening) -> OpenFeature:
    return OpenFeature()


@dataclass(frozen=True, slots=True)
class Feature:
    """A folder of `features`, as the rest of the server knows it.

    Attributes:
      name: Name of the folder.
      requires: Names of other features that it uses.
      routers: Routes.
      admin_routers: Routes that need an admin key, and that are missing without one.
      public_paths: Paths that need no API key.
      unlimited_paths: Paths whose routes limit bodies themselves.
      fields: Fields of its bodies that others refuse, and the path that takes each, for errors.
      events: Models of the events of its streams, for `/openapi.json`.
      error_shapes: Bodies of errors on its paths, if they have another shape than OpenAI's.
      tables: Its tables in a database; None if it has none.
      open: Opens it for a server.
      unused_collectors: Returns collectors that have counted nothing, for the reference of metrics.
    """

    name: str
    requires: Sequence[str] = ()
    routers: Sequence[APIRouter] = ()
    admin_routers: Sequence[APIRouter] = ()
    public_paths: frozenset[str] = frozenset()
    unlimited_paths: frozenset[str] = frozenset()
    fields: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[Any] = ()
    error_shapes: ErrorShapes = field(default_factory=dict)
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
