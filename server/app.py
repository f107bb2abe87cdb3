"""The web application, put together."""

import importlib.metadata
from typing import Final

from fastapi import FastAPI

from .door import Doorkeeper
from .error_answers import install_error_handlers
from .middleware import ApiKey, BodyLimit, RequestScope
from .openapi import ERRORS
from .routes import abort, chat, completions, generate, health, messages, models, page, render, responses, tokenize
from .service import Service

MAX_BODY_BYTES: Final = 64 * 2**20
"""Room for a prompt of some ten million token ids."""


def create_app(service: Service, *, api_key: str | None = None, max_body_bytes: int = MAX_BODY_BYTES) -> FastAPI:
    """
    Args:
      service: what the routes work with; its engine need not be ready.
      api_key: demanded of all but probes, if given.
      max_body_bytes: of a request.
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
    for room in (chat, completions, responses, messages, generate, models, tokenize, render, abort, health, page):
        app.include_router(room.router)
    install_error_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    if api_key is not None:
        app.add_middleware(ApiKey, key=api_key)
    app.add_middleware(Doorkeeper, door=service.door)
    app.add_middleware(RequestScope)  # the last one added is the outermost
    return app
