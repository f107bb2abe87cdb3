"""For whoever runs the server: is it alive, is it ready, how is it, what is it. No model is needed to answer."""

import importlib.metadata

from fastapi import APIRouter, Response

from ..metrics import CONTENT_TYPE
from ..service import AnyService, ReadyService

router = APIRouter()


@router.get("/health")
async def health(service: AnyService) -> dict[str, str]:
    """200 from the first second on; 503 only when the engine is dead, which no waiting will heal."""
    service.check_alive()
    return {"status": "ok"}


@router.get("/health/ready")
async def ready(service: ReadyService) -> dict[str, str]:
    """200 while requests are served."""
    return {"status": "ready"}


@router.get("/metrics")
async def metrics(service: AnyService) -> Response:
    return Response(service.metrics.page(), headers={"content-type": CONTENT_TYPE})


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": importlib.metadata.version("roost")}
