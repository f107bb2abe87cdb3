"""The web application: routes and middleware."""

import importlib.metadata
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from .errors.request_errors import WARNINGS_HEADER
from .feature import Feature, OpenFeature, Opening, load_features
from .generation.service import Service
from .http import health
from .http.auth import Access, AccessControl
from .http.error_responses import install_error_handlers
from .http.foreign_paths import foreign_paths
from .http.middleware import BodyLimit, Drain, HeadAndOptions, RequestScope, RootPath
from .http.origins import AllowedOrigins, BrowserGuard
from .http.routes import ERRORS, docs_router, with_events
from .observability.metrics import store_rows
from .observability.request_metrics import RowCollector
from .openai import completions, models
from .openai.response_schemas import ChatCompletionChunk, Completion
from .schemas.body import BodyCheck

FEATURES: Final = load_features()

_ROUTERS: Final = (
    completions.router,
    models.router,
    health.router,
    docs_router,
    *(router for feature in FEATURES for router in feature.routers),
)
"""Routers of all endpoints, in the order of `/openapi.json`."""

_ADMIN_ROUTERS: Final = (health.admin_router, *(router for feature in FEATURES for router in feature.admin_routers))
"""Routers of endpoints that need an admin key, and that are missing without one."""

_ROUTES: Final = APIRouter(responses=ERRORS)
"""Routes of all endpoints, shared by the applications of a process: FastAPI prepares a router's routes on first use,
which takes milliseconds."""

for _router in _ROUTERS:
    _ROUTES.include_router(_router)

_EVENTS: Final = (ChatCompletionChunk, Completion, *(event for feature in FEATURES for event in feature.events))
"""Models of the events of streams, for `/openapi.json`."""

_ERROR_SHAPES: Final = [feature.error_shape for feature in FEATURES if feature.error_shape is not None]

_FOREIGN_PATHS: Final = foreign_paths(feature.path_hints for feature in FEATURES)

_OPEN_TO_ALL: Final = Access()

_PUBLIC_PATHS: Final = frozenset({"/docs", "/health", "/health/ready", "/metrics"}).union(
    *(feature.public_paths for feature in FEATURES)
)
"""Paths that need no API key: the list of endpoints, probes, metrics, and public paths of features."""


def open_features(opening: Opening, features: Sequence[Feature] = FEATURES) -> list[OpenFeature]:
    """Opens features, and adds their metrics and observers to the service's.

    Raises:
      RoostError: A feature cannot be opened.
    """
    opened = [feature.open(opening) for feature in features]
    for each in opened:
        opening.service.metrics.requests.observers += each.observers
    databases = [each.database for each in opened if each.database is not None]
    opening.service.metrics.registry.register(
        RowCollector(lambda: store_rows({database.name: database.is_available for database in databases}))
    )
    for collector in (collector for each in opened for collector in each.collectors):
        opening.service.metrics.registry.register(collector)
    return opened


def create_app(
    service: Service,
    access: Access = _OPEN_TO_ALL,
    features: Sequence[OpenFeature] | None = None,
    *,
    strict: bool = False,
    root_path: str = "",
    trace: Callable[[ASGIApp], ASGIApp] | None = None,
) -> FastAPI:
    """Returns the application.

    Args:
      service: Service of all routes; its engine need not be ready.
      access: API keys, admin keys and allowed origins.
      features: Open features; None opens them without settings.
      strict: Whether unknown fields of bodies are errors.
      root_path: Path under which a proxy offers the server; empty for the root.
      trace: Middleware that traces requests.
    """
    app = FastAPI(
        title="Roost",
        version=importlib.metadata.version("roost"),
        docs_url=None,  # these pages load their scripts from other servers
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
        routes=_ROUTES.routes,
    )
    app.state.service = service
    app.state.features = open_features(Opening(service)) if features is None else features
    app.state.check_body = BodyCheck(service.model.names, strict=strict)
    app.openapi = with_events(app, _EVENTS)  # type: ignore[method-assign]
    admin_routers = _ADMIN_ROUTERS if access.admin_keys else ()
    for router in admin_routers:
        app.include_router(router)
    install_error_handlers(app, _ERROR_SHAPES)
    admin_routes = _routes_of(admin_routers)
    routes = [*_routes_of(_ROUTERS), *admin_routes]
    app.state.paths = [route.path for route in routes if route.include_in_schema and "{" not in route.path]
    app.state.foreign_paths = _FOREIGN_PATHS
    app.add_middleware(HeadAndOptions, routes=routes)
    unlimited = frozenset[str]().union(*(feature.unlimited_paths for feature in FEATURES))
    app.add_middleware(BodyLimit, admissions=service.admissions, exempt_paths=unlimited)
    if access.keys or access.admin_keys or access.admin_port is not None:
        admin_paths = {route.path for route in admin_routes}
        app.add_middleware(AccessControl, access=access, public_paths=_PUBLIC_PATHS, admin_paths=admin_paths)
    app.add_middleware(Drain, open_requests=service.open_requests)
    if access.browsers.origins:
        _allow_origins(app, access.browsers.origins)
    app.add_middleware(BrowserGuard, policy=access.browsers)
    if trace is not None:
        app.add_middleware(trace)
    app.add_middleware(RequestScope, metrics=service.metrics.http, routes=routes, model=service.model.id)
    if root_path:
        app.add_middleware(RootPath, prefix=root_path)  # the last one added is the outermost
    return app


def _routes_of(routers: Iterable[APIRouter]) -> list[Route]:
    return [route for router in routers for route in router.routes if isinstance(route, Route)]


def _allow_origins(app: FastAPI, origins: AllowedOrigins) -> None:
    """Lets pages of these origins read responses. Browsers send a preflight request for that, without a key."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins.names,
        allow_origin_regex="|".join(f"{re.escape(scheme)}.*" for scheme in origins.schemes) or None,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after", "retry-after-ms", WARNINGS_HEADER),
    )
