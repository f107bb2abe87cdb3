"""Saved states over HTTP: `/v1/states` saves the state of a request under an id, to continue, export and import it."""

from contextlib import AsyncExitStack
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from ....engine import StateFileError
from ...errors.request_errors import bad_value
from ...feature import Feature, OpenFeature, Opening, opened
from ...http.routes import After, AnyService, JsonRoute, Limit, QueryOrder, ReadyService, described, page
from ...openai.response_schemas import DeletedObject
from ...schemas.body import Body, Count
from ...tenants import tenant
from .state_files import STATE_FILE_TYPE, StateFileResponse, StateFiles, receive_file

IMPORT_PATH: Final = "/v1/states/import"

_FILE: Final = {STATE_FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}}
"""Content of a request or a response that is a state file, for `/openapi.json`."""

router = APIRouter(route_class=JsonRoute)


class OpenStates(OpenFeature):
    """Transfers of state files. The service keeps the states themselves.

    Args:
      files: Memory of the files.
    """

    def __init__(self, files: StateFiles) -> None:
        self.files = files


def open_states(opening: Opening) -> OpenStates:
    """Returns the feature of a server."""
    return OpenStates(StateFiles(opening.num_tenants))


States = Annotated[OpenStates, Depends(opened(OpenStates))]
"""Open feature of routes."""


class StateBody(Body):
    """`POST /v1/states`; `index` is the choice's."""

    request_id: Annotated[str, Field(min_length=1)]
    """Id of the response whose state is saved."""

    index: Count = 0
    """Index of the choice whose state is saved."""


@described
class StateMessage(TypedDict):
    """A message of a chat, decoded from the tokens of its state."""

    role: Literal["system", "user", "assistant"]
    """Role of the author."""

    content: str
    """Text of the message."""


@described
class StateObject(TypedDict):
    """A saved state. Its first `read_tokens` tokens have been prefilled."""

    id: str
    """Id for `from_state` and for the paths below `/v1/states`."""

    object: Literal["state"]
    """Kind of object."""

    created: int
    """Time at which the state was saved, in seconds since 1970."""

    tokens: int
    """Number of tokens of the whole history."""

    read_tokens: int
    """Number of leading tokens that have been prefilled; the rest is prefilled when a request continues."""

    bytes: int
    """Bytes of memory that the state takes."""

    messages: NotRequired[list[StateMessage]]
    """Messages of the chat, whose last one is a reply. `/v1/states/{state_id}` and `/v1/states/import` have them if the
    tokens are a chat in the model's chat format, with at most as many messages as a request may have: formatting the
    messages gives the same tokens, except that a model may have chosen others for the text of a reply."""


@described
class StateList(TypedDict):
    """One page of the saved states."""

    object: Literal["list"]
    """Kind of object."""

    data: list[StateObject]
    """States of the page."""

    first_id: str
    """Id of the page's first state; empty if there is none."""

    last_id: str
    """Id of the page's last state, which `after` takes for the next page."""

    has_more: bool
    """Whether more states follow."""


@router.post("/v1/states", response_model=StateObject)
async def save_state(body: StateBody, service: ReadyService) -> dict[str, Any]:
    """Saves the state of a choice that is running or ended recently, up to the tokens whose text was sent whole."""
    return (await service.save_state(body.request_id, body.index)).described()


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
    """Describes a state. If it is one of a chat, `messages` has the text."""
    return await service.described_state(service.states.get(state_id, tenant.get()))


@router.delete("/v1/states/{state_id}")
async def delete_state(state_id: str, service: AnyService) -> DeletedObject:
    """Deletes a state."""
    service.states.delete(state_id, tenant.get())
    return DeletedObject(id=state_id, object="state", deleted=True)


@router.get(
    "/v1/states/{state_id}/export",
    response_class=Response,
    responses={200: {"description": "The file.", "content": _FILE}},
)
async def export_state(state_id: str, service: ReadyService, states: States) -> Response:
    """Returns a file in the safetensors format, which any server with this model imports."""
    stored, kind = service.states.get(state_id, tenant.get()), service.engine.state_format
    async with AsyncExitStack() as resources:
        transfer = await resources.enter_async_context(states.files.transfer())
        transfer.may_give_way = False
        states.files.grow(transfer, stored.num_bytes, kind.max_file_bytes)
        data = await service.export_state(stored)
        return StateFileResponse(data, f"{state_id}.safetensors", transfer, resources.pop_all())


@router.post(
    IMPORT_PATH, response_model=StateObject, openapi_extra={"requestBody": {"required": True, "content": _FILE}}
)
async def import_state(
    request: Request,
    service: ReadyService,
    states: States,
    cache_salt: Annotated[
        str, Query(max_length=256, description="`cache_salt` of the requests that restore the state by their prompts.")
    ] = "",
) -> dict[str, Any]:
    """Saves a state from an exported file, which is the body. Prompts that begin with the state's tokens restore it.

    If the file is one of a chat, `messages` has the text.
    """
    kind = service.engine.state_format
    async with states.files.transfer() as transfer:
        data = await receive_file(request, states.files, transfer, kind.max_file_bytes)
        try:
            stored = await service.import_state(bytes(data), cache_salt)
        except StateFileError as error:
            raise bad_value(None, f"the file {error}") from None
    return await service.described_state(stored)


FEATURE: Final = Feature("states", routers=(router,), unlimited_paths=frozenset({IMPORT_PATH}), open=open_states)
