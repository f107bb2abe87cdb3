"""Health checks, metrics and information about the server."""

import importlib.metadata

from fastapi import APIRouter, Request, Response

from ..errors.request_errors import shutting_down, store_outdated
from ..observability.metrics import CONTENT_TYPE
from .health_schemas import Load, Readiness, ServerInfo, Status, Version
from .openapi import PLAIN_TEXT
from .routes import AnyService, ReadyService

router = APIRouter()


@router.get("/health")
async def health(service: AnyService) -> Status:
    """Returns 200 from the start; 503 only when the engine is dead and the server must be restarted."""
    service.check_alive()
    return {"status": "ok"}


@router.get("/health/ready", response_model_exclude_unset=True)
async def ready(request: Request, service: ReadyService) -> Readiness:
    """Returns 200 while new requests are served, even if a feature's database is unavailable, which all replicas share.

    Returns 503 once a newer replica has excluded this one from a database that other replicas can use.
    """
    if service.open_requests.is_draining:
        raise shutting_down()
    databases = [each.database for each in request.app.state.features if each.database is not None]
    if any(database.outdated is not None for database in databases):
        raise store_outdated()
    away = [database.name for database in databases if not database.is_available]
    return {"status": "degraded", "store_unavailable": away} if away else {"status": "ready"}


@router.get("/health_generate")
async def health_generate(service: ReadyService) -> Status:
    """Returns 200 once a token has been generated; 503 with the reason if it is not generated in time."""
    await service.check_generates()
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, responses=PLAIN_TEXT)
async def metrics(service: AnyService) -> Response:
    """Returns metrics in Prometheus' text format."""
    return Response(await service.metrics.page(), headers={"content-type": CONTENT_TYPE})


@router.get("/load")
async def load(service: AnyService) -> Load:
    """Returns the current load. `server_load` is vLLM's name for the number of unfinished requests."""
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
        "max_tokens_limit": service.model.max_tokens_limit,
        "state_cache_bytes": service.engine.stats.cache.budget,
        "simulated": model.simulated,
    }
    for feature in request.app.state.features:
        info.update(feature.facts)
    return info


def _version() -> str:
    return importlib.metadata.version("roost")
