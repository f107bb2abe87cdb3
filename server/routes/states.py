"""`/v1/states`: the state of a request is kept under an id, gone on from as often as wanted, and moved as a file."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from ...engine import StateFileError, UnknownRequestError
from ..body import read_file
from ..errors import ApiError, bad_value, too_many_bytes
from ..schema import StateBody
from ..service import AnyService, ReadyService, Service
from ..tenant import tenant

IMPORT_PATH: Final = "/v1/states/import"

router = APIRouter()


@router.post("/v1/states")
async def save_state(body: StateBody, service: ReadyService) -> dict[str, Any]:
    """Of a request that runs, as far as it is, or has ended lately; it is known by its answer's id."""
    service.check(body)
    message = f"no request with the id {body.request_id!r} and a choice {body.index} runs, or has ended lately"
    unknown = ApiError(404, message, param="request_id")
    try:
        state = await service.engine.save(f"{body.request_id}-{body.index}")
    except UnknownRequestError:
        raise unknown from None
    if state.tenant != tenant.get():
        raise unknown
    return service.states.keep(state, tenant.get(), _limit(service)).described()


@router.get("/v1/states")
async def list_states(service: AnyService) -> dict[str, Any]:
    """One's own."""
    return {"object": "list", "data": [stored.described() for stored in service.states.of(tenant.get())]}


@router.get("/v1/states/{state_id}")
async def get_state(state_id: str, service: AnyService) -> dict[str, Any]:
    """What it is of."""
    return service.states.get(state_id, tenant.get()).described()


@router.delete("/v1/states/{state_id}")
async def delete_state(state_id: str, service: AnyService) -> dict[str, Any]:
    """Forgets it."""
    service.states.delete(state_id, tenant.get())
    return {"id": state_id, "object": "state", "deleted": True}


@router.get("/v1/states/{state_id}/export")
async def export_state(state_id: str, service: ReadyService) -> Response:
    """A file in the safetensors format, which any server with this model imports."""
    state = service.states.get(state_id, tenant.get()).state
    data = service.engine.state_format.export(state, service.state_key)
    headers = {"content-disposition": f'attachment; filename="{state_id}.safetensors"'}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.post(IMPORT_PATH)
async def import_state(request: Request, service: ReadyService) -> dict[str, Any]:
    """What an export gave, as the body."""
    kind = service.engine.state_format
    if service.imports.locked():
        raise too_many_bytes()
    async with service.imports:
        try:
            state = kind.load(await read_file(request, kind.max_file_bytes), service.state_key)
        except StateFileError as error:
            raise bad_value(None, f"the file {error}") from None
    return service.states.keep(state, tenant.get(), _limit(service), is_imported=True).described()


def _limit(service: Service) -> int:
    """They may take as much as the cache."""
    return service.engine.stats.cache.budget
