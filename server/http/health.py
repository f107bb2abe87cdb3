"""Health, readiness, load, metrics and version of a server."""

import importlib.metadata
from typing import NotRequired, TypedDict, cast

from fastapi import APIRouter, Request, Response

from ..errors.request_errors import shutting_down, store_outdated
from ..observability.metrics import CONTENT_TYPE
from .routes import PLAIN_TEXT, AnyService, ReadyService, described


@described
class Status(TypedDict):
    """Response of health checks."""

    status: str
    """`ok`."""


@described
class Readiness(TypedDict):
    """Response of `/health/ready`."""

    status: str
    """`ready`, or `degraded` while a database is unavailable and requests that need it get 503."""

    store_unavailable: NotRequired[list[str]]
    """Features whose database is unavailable."""


@described
class Version(TypedDict):
    """Response of `/version`."""

    version: str
    """Version of Roost."""


@described
class Load(TypedDict):
    """Response of `/load`. `server_load` is vLLM's name for the number of unfinished requests."""

    server_load: int
    """Number of unfinished requests, running and waiting; vLLM's name."""

    running: int
    """Number of requests that have a slot."""

    waiting: int
    """Number of requests without a slot."""

    slots: int
    """Maximum number of requests that run at the same time."""


@described
class ServerInfo(TypedDict):
    """Response of `/server_info`. `slots` is 0 before the model is loaded."""

    version: str
    """Version of Roost."""

    model: str
    """Id of the served model."""

    fingerprint: str
    """Changes with everything that may change outputs; the same as `system_fingerprint` in responses."""

    vocab_size: int
    """Number of token ids."""

    has_text: bool
    """Whether the checkpoint has a tokenizer. Without one, prompts and outputs are only token ids."""

    ready: bool
    """Whether the model is loaded and compiled."""

    slots: int
    """Maximum number of requests that run at the same time; 0 before the model is loaded."""

    max_choices: int
    """Maximum number of choices of one request."""

    max_model_len: None
    """Always null, since nothing limits the length."""

    max_tokens_limit: int | None
    """Maximum number of tokens that a request may generate, set by `--max-tokens-limit`; null without a limit."""

    state_cache_bytes: int
    """Budget of the prefix cache in bytes of host memory."""

    store: NotRequired[str]
    """Kind of the store of responses: `memory`, `sqlite` or `postgresql`."""

    simulated: str | None
    """Device that is simulated instead of running the model, set by `--simulate`; null if the model runs."""


@described
class OperatorInfo(ServerInfo):
    """Response of `/debug/server_info`."""

    store_address: NotRequired[str]
    """Address of the store of responses, without a password."""


router, admin_router = APIRouter(), APIRouter()


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
    return Response(service.metrics.page(), headers={"content-type": CONTENT_TYPE})


@router.get("/load")
async def load(service: AnyService) -> Load:
    """Returns the current load of all clients. `/metrics` has the totals since the start."""
    stats = service.engine.stats
    return {
        "server_load": stats.num_running + stats.num_waiting,
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "slots": stats.slots,
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


@admin_router.get("/debug/server_info")
async def operator_info(request: Request, service: AnyService) -> OperatorInfo:
    """Returns what `/server_info` does, and the address of the store."""
    info = cast(OperatorInfo, await server_info(request, service))
    for feature in request.app.state.features:
        info.update(feature.operator_facts)
    return info


def _version() -> str:
    return importlib.metadata.version("roost")
