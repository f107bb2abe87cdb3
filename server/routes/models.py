"""`GET /v1/models`: the one model that is served."""

from typing import Any

from fastapi import APIRouter, Response

from ..errors import unknown_model
from ..served_model import ServedModel
from ..service import ReadyService, json_response

router = APIRouter()


@router.get("/v1/models")
async def list_models(service: ReadyService) -> Response:
    return json_response({"object": "list", "data": [_describe(service.model)]})


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, service: ReadyService) -> Response:
    if model_id != service.model.id:
        raise unknown_model(model_id)
    return json_response(_describe(service.model))


def _describe(model: ServedModel) -> dict[str, Any]:
    """`max_model_len` is null as nothing limits the length: a request's state has a fixed size."""
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "roost",
        "max_model_len": None,
    }
