"""The web application, put together."""

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from .api.anthropic import messages
from .api.common.openapi import ERRORS
from .api.common.unknown_fields import FieldCheck
from .api.native import abort, debug, generate, health, page, render, states, tokenize
from .api.native.chat_page import FILES
from .api.openai import chat_completions as chat
from .api.openai import completions, models, responses
from .error_responses import install_error_handlers
from .generation.service import Service
from .middleware.auth import Access, KeyAuthentication, PortSplit, needs_admin_key, needs_key
from .middleware.body_limit import MAX_BODY_BYTES, MAX_KEPT_BYTES, BodyLimit
from .middleware.drain import Drain
from .middleware.http_methods import HeadAndOptions
from .middleware.request_id import RequestScope
from .request_warnings import HEADER as WARNINGS_HEADER

_OPEN_TO_ALL = Access()

_PUBLIC_PATHS: Final = frozenset({"/", "/v1", "/v1/", *FILES, "/health", "/health/ready", "/metrics"})
"""Paths that need no API key: the chat page, which asks for the key, and its files, the API's root, probes, metrics."""


def create_app(
    service: Service,
    access: Access = _OPEN_TO_ALL,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    max_kept_bytes: int = MAX_KEPT_BYTES,
    strict: bool = False,
    trace: Callable[[ASGIApp], ASGIApp] | None = None,
) -> FastAPI:
    """
    Args:
      service: what the routes work with; its engine need not be ready.
      access: who may come in.
      max_body_bytes: of a request; a state that is imported has a bound of its own.
      max_kept_bytes: that all requests may hold together until their answers end.
      trace: what is put around it all to see requests come and go.
    """
    app = FastAPI(
        title="Roost",
        version=importlib.metadata.version("roost"),
        docs_url=None,  # these pages load their scripts from other people's servers
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
    )
    app.state.service = service
    app.state.check_fields = FieldCheck(strict=strict)
    rooms = (chat, completions, responses, messages, generate, models, tokenize, render, states, abort, health, page)
    for room in rooms:
        app.include_router(room.router)
    app.state.endpoints = tuple(each for room in rooms for each in _endpoints(room.router))
    if access.admin_keys:
        app.include_router(debug.router)
    install_error_handlers(app)
    app.add_middleware(HeadAndOptions, routes=app.routes)
    tenants = len(access.keys.owners)
    app.add_middleware(
        BodyLimit,
        max_bytes=max_body_bytes,
        exempt_paths=(states.IMPORT_PATH,),
        tenants=tenants,
        max_kept_bytes=max_kept_bytes,
    )
    if access.keys:
        is_protected = partial(needs_key, public_paths=_PUBLIC_PATHS)
        app.add_middleware(KeyAuthentication, keys=access.keys, is_protected=is_protected)
    if access.admin_keys:
        app.add_middleware(KeyAuthentication, keys=access.admin_keys, is_protected=needs_admin_key)
    app.add_middleware(Drain, open_requests=service.open_requests)
    if access.admin_port is not None:
        app.add_middleware(PortSplit, admin_port=access.admin_port)
    if access.allowed_origins:
        _allow_origins(app, access.allowed_origins)
    if trace is not None:
        app.add_middleware(trace)
    app.add_middleware(RequestScope)  # the last one added is the outermost
    return app


def _endpoints(router: APIRouter) -> Iterator[str]:
    """Methods and paths of a router's part of the API."""
    for route in router.routes:
        if isinstance(route, APIRoute) and route.include_in_schema and route.path.startswith("/v1/"):
            yield from (f"{method} {route.path}" for method in sorted(route.methods or ()))


def _allow_origins(app: FastAPI, origins: Sequence[str]) -> None:
    """Browsers let other people's pages read answers; they ask before that, without a key."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after", "retry-after-ms", WARNINGS_HEADER),
    )
