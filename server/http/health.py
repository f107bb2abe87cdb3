"""Health checks, metrics and information about the server."""

import importlib.metadata

from fastapi import APIRouter, Request, Response

from ..errors.request_errors import shutting_down
from ..observability.metrics import CONTENT_TYPE
from .health_schemas import Load, ServerInfo, Status, Version
from .openapi import PLAIN_TEXT
from .routes import AnyService, ReadyService

router = APIRouter()


@router.get("/health")
async def health(service: AnyService) -> Status:
    """Returns 200 from the start; 503 only when the engine is dead, which a restart alone can mend."""
    service.check_alive()
    return {"status": "ok"}


@router.get("/health/ready")
async def ready(service: ReadyService) -> Status:
    """Returns 200 while new requests are served."""
    if service.open_requests.is_draining:
        raise shutting_down()
    return {"status": "ready"}


@router.get("/health_generate")
async def health_generate(service: ReadyService) -> Status:
    """Returns 200 once a token has been generated; 503 with the reason if none comes in time."""
    await service.check_generates()
    return {"status": "ok"}


@router.get("/metrics", responses=PLAIN_TEXT)
async def metrics(service: AnyService) -> Response:
    """Returns metrics in Prometheus' text format."""
    return Response(service.metrics.page(), headers={"content-type": CONTENT_TYPE})


@router.get("/load")
async def load(service: AnyService) -> Load:
    """Returns the present load. `server_load` is vLLM's name for the number of unfinished requests."""
    stats = service.engine.stats
    return {
        "server_load": stats.num_running + stats.num_waiting,
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "slots": stats.slots,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "cached_tokens": stats.cache.hit_tokens,
        "state_cache_bytes": stats.cache.num_bytes,
    }


@router.get("/version")
async def version() -> Version:
    """Returns the server's version."""
    return {"version": _version()}


@router.get("/server_info")
async def server_info(request: Request, service: AnyService) -> ServerInfo:
    """Returns the model and the limits. `slots` is 0 before the model is loaded."""
    model = service.model
    info: ServerInfo = {
        "version": _version(),
        "model": model.id,
        "fingerprint": model.fingerprint,
        "vocab_size": model.tokenizer.vocab_size,
        "has_text": model.tokenizer.has_text,
        "ready": service.engine.is_ready,
        "slots": service.engine.stats.slots,
        "max_choices": service.limits.max_choices,
        "max_model_len": None,
        "state_cache_bytes": service.engine.stats.cache.budget,
        "simulated": model.simulated,
    }
    for feature in request.app.state.features:
        info.update(feature.facts)
    return info


def _version() -> str:
    return importlib.metadata.version("roost")
