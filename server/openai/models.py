"""`GET /v1/models`: the served model, in OpenAI's or Anthropic's shape."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from ..errors.request_errors import ErrorBody, unknown_model
from ..http.responses import json_response
from ..http.routes import JsonRoute, ReadyService, errors, success
from ..text.served_model import ServedModel
from .response_schemas import AnthropicErrorBody, AnthropicModelList, AnthropicModelObject, ModelList, ModelObject

router = APIRouter(route_class=JsonRoute, responses=errors(ErrorBody | AnthropicErrorBody))

AnthropicVersion = Annotated[str | None, Header()]
"""Header `anthropic-version`, which only Anthropic's clients send."""


@router.get("/v1/models", responses=success(ModelList | AnthropicModelList))
async def list_models(service: ReadyService, anthropic_version: AnthropicVersion = None) -> Response:
    """Lists the served model under each of its names."""
    names = service.model.names
    if anthropic_version is None:
        return json_response({"object": "list", "data": [_describe(service.model, name) for name in names]})
    listed = {"data": [_describe_to_anthropic(service.model, name) for name in names], "has_more": False}
    return json_response({**listed, "first_id": names[0], "last_id": names[-1]})


@router.get("/v1/models/{model_id:path}", responses=success(ModelObject | AnthropicModelObject))
async def get_model(
    model_id: str, request: Request, service: ReadyService, anthropic_version: AnthropicVersion = None
) -> Response:
    """Describes the served model."""
    if request.scope["path"].endswith("/") and not model_id:  # the slash of a base URL, and no line feed
        return await list_models(service, anthropic_version)
    if model_id not in service.model.names:
        raise unknown_model(model_id, service.model.names)
    describe = _describe if anthropic_version is None else _describe_to_anthropic
    return json_response(describe(service.model, model_id))


def _describe(model: ServedModel, name: str) -> dict[str, Any]:
    """Describes a model under one of its names. `max_model_len` is null since a state's size never grows."""
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "roost",
        "root": model.root or model.id,
        "parent": model.parent,
        "max_model_len": None,
    }


def _describe_to_anthropic(model: ServedModel, name: str) -> dict[str, Any]:
    """Describes a model under one of its names to Anthropic's clients. Limits are null where there are none."""
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": datetime.fromtimestamp(model.created, UTC).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": None,
        "max_tokens": model.max_tokens_limit,
    }
