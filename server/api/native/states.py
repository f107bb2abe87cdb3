"""`/v1/states`: saves the state of a request under an id, to be continued, exported and imported."""

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from ....engine import MAX_TOKENS, SavedState, StateFileError, UnknownRequestError
from ...error_kinds import ErrorKind
from ...errors import ApiError, bad_value
from ...generation.service import Service
from ...generation.state_files import StateFileResponse
from ...tenancy.tenant import tenant
from ..common.paging import After, Limit, QueryOrder, page
from ..common.routes import AnyService, JsonRoute, ReadyService
from ..common.schema_base import check_body
from ..openai.response_schemas import DeletedObject
from ..openai.schemas import StateBody
from .response_schemas import StateList, StateObject

IMPORT_PATH: Final = "/v1/states/import"

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/states", response_model=StateObject)
async def save_state(body: StateBody, request: Request, service: ReadyService) -> dict[str, Any]:
    """Saves the state of a choice that runs or ended lately, up to the tokens whose text was sent whole."""
    check_body(body, request)
    message = f"no request with the id {body.request_id!r} and a choice {body.index} runs, or has ended lately"
    unknown = ApiError(ErrorKind.NO_SUCH_OBJECT, message, param="request_id")
    async with service.saves.hold():
        sent = service.tracked.find(body.request_id, body.index)
        if sent is None:
            raise unknown
        try:
            state = await service.engine.save(sent.request_id, sent.num_tokens)
        except UnknownRequestError:
            raise unknown from None
    if state.tenant != tenant.get():
        raise unknown
    if state.num_tokens > MAX_TOKENS:
        raise bad_value("request_id", f"request_id: a state may have {MAX_TOKENS} tokens, not {state.num_tokens}")
    return service.states.keep(state, tenant.get(), _limit(service)).described()


@router.get("/v1/states", response_model=StateList)
async def list_states(
    service: AnyService,
    limit: Limit = 20,
    order: QueryOrder = "desc",
    after: After = None,
) -> dict[str, Any]:
    """Lists the tenant's states, page by page."""
    states = service.states.of(tenant.get())
    return page(states, limit, order, after, id_of=lambda stored: stored.id, describe=lambda stored: stored.described())


@router.get("/v1/states/{state_id}", response_model=StateObject)
async def get_state(state_id: str, service: AnyService) -> dict[str, Any]:
    """Describes a state."""
    return service.states.get(state_id, tenant.get()).described()


@router.delete("/v1/states/{state_id}")
async def delete_state(state_id: str, service: AnyService) -> DeletedObject:
    """Deletes a state."""
    service.states.delete(state_id, tenant.get())
    return DeletedObject(id=state_id, object="state", deleted=True)


@router.get("/v1/states/{state_id}/export")
async def export_state(state_id: str, service: ReadyService) -> Response:
    """Returns a file in the safetensors format, which any server with this model imports."""
    stored, kind = service.states.get(state_id, tenant.get()), service.engine.state_format
    async with AsyncExitStack() as resources:
        transfer = await resources.enter_async_context(service.files.transfer())
        transfer.may_give_way = False
        service.files.grow(transfer, stored.num_bytes, kind.max_file_bytes)
        data = await service.files.run(lambda: kind.export(stored.state, service.state_key))
        return StateFileResponse(data, f"{state_id}.safetensors", transfer, resources.pop_all())


@router.post(IMPORT_PATH, response_model=StateObject)
async def import_state(request: Request, service: ReadyService) -> dict[str, Any]:
    """Saves a state from the file of an export, which is the body."""
    kind = service.engine.state_format
    async with service.files.transfer() as transfer:
        data = await service.files.receive(request, transfer, kind.max_file_bytes)

        def load() -> SavedState:
            return kind.load(bytes(data), service.state_key)

        try:
            state = await service.files.run(load)
        except StateFileError as error:
            raise bad_value(None, f"the file {error}") from None
    state = replace(state, salt=f"import-{uuid4().hex}")  # a secret, so that no other request shares it
    return service.states.keep(state, tenant.get(), _limit(service)).described()


def _limit(service: Service) -> int:
    """Returns the maximum bytes of all saved states: as much as the prefix cache may take."""
    return service.engine.stats.cache.budget
