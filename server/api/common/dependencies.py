"""The service dependency of routes, and the check of a body against the model and its schema."""

from typing import Annotated

from fastapi import Depends, Request

from ...errors import model_loading, unknown_model
from ...generation.service import Service
from .schema_base import Body, Fields
from .unknown_fields import FieldCheck


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _ready_service(request: Request) -> Service:
    service = await _service(request)
    service.check_alive()
    if not service.engine.is_ready:
        raise model_loading()
    return service


AnyService = Annotated[Service, Depends(_service)]
"""Service of routes that respond in every phase of the lifecycle."""

ReadyService = Annotated[Service, Depends(_ready_service)]
"""Service of routes that need the model: 503 while it loads and when the engine is dead."""


def check_body(body: Fields, request: Request) -> None:
    """Checks that a body names this model, and the fields that its schema does not name.

    Raises:
      ApiError: The model is another one, or a field is refused.
    """
    service: Service = request.app.state.service
    if isinstance(body, Body) and body.model is not None and body.model != service.model.id:
        raise unknown_model(body.model)
    check_fields: FieldCheck = request.app.state.check_fields
    check_fields(body)
