"""Saved states over HTTP: `/v1/states` saves the state of a request under an id, to continue, export and import it."""

import re
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from ....engine import StateFileError
from ...errors.request_errors import bad_value, body_too_large
from ...feature import Feature
from ...generation.admission import Admission, admission
from ...http.middleware import announced_bytes
from ...http.responses import SlicedResponse
from ...http.routes import AnyService, JsonRoute, ListPage, QueryPage, ReadyService, described, page_object, page_of
from ...openai.response_schemas import DeletedObject
from ...schemas.body import Body, Count
from ...tenants import tenant

IMPORT_PATH: Final = "/v1/states/import"

_FILE_TYPE: Final = "application/octet-stream"

_FILE: Final = {_FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}}
"""Content of a request or a response that is a state file, for `/openapi.json`."""

router = APIRouter(route_class=JsonRoute)


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


@router.post("/v1/states", response_model=StateObject)
async def save_state(body: StateBody, service: ReadyService) -> dict[str, Any]:
    """Saves the state of a choice that is running or ended recently, up to the tokens whose text was sent whole."""
    return (await service.save_state(body.request_id, body.index)).described()


@router.get("/v1/states", response_model=ListPage[StateObject])
async def list_states(service: AnyService, spec: QueryPage) -> dict[str, Any]:
    """Lists the tenant's states, page by page."""
    found = page_of(service.states.of(tenant.get()), spec, lambda stored: stored.id)
    return page_object(found, spec.after, lambda stored: stored.id, lambda stored: stored.described())


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
async def export_state(state_id: str, service: ReadyService) -> Response:
    """Returns a file in the safetensors format, which any server with this model imports."""
    stored = service.states.get(state_id, tenant.get())
    await admission.get().keep(stored.num_bytes)
    headers = {"content-disposition": f'attachment; filename="{state_id}.safetensors"'}
    return SlicedResponse(await service.export_state(stored), headers=headers, media_type=_FILE_TYPE)


@router.post(
    IMPORT_PATH, response_model=StateObject, openapi_extra={"requestBody": {"required": True, "content": _FILE}}
)
async def import_state(
    request: Request,
    service: ReadyService,
    cache_salt: Annotated[
        str, Query(max_length=256, description="`cache_salt` of the requests that restore the state by their prompts.")
    ] = "",
) -> dict[str, Any]:
    """Saves a state from an exported file, which is the body. Prompts that begin with the state's tokens restore it.

    If the file is one of a chat, `messages` has the text.
    """
    own = service.admissions.open()
    try:
        data = await _receive(request, own, service.engine.state_format.max_file_bytes)
        stored = await service.import_state(data, cache_salt)
    except StateFileError as error:
        fault = f"the file {error}"
        reason = re.sub(r" \(.*", " (…)", fault)  # what is in brackets may be the client's
        raise bad_value(None, fault, reason=reason) from None
    finally:
        own.release()
    return await service.described_state(stored)


async def _receive(request: Request, own: Admission, max_bytes: int) -> bytes:
    """Returns a request's body. Only the received part of it is charged, so a slow client holds no more than that."""
    if announced_bytes(request.headers) > max_bytes:
        raise body_too_large(max_bytes)
    data = bytearray()
    async for chunk in request.stream():
        if len(data) + len(chunk) > max_bytes:
            raise body_too_large(max_bytes)
        await own.keep(len(chunk))
        data += chunk
    return bytes(data)


FEATURE: Final = Feature("states", routers=(router,), unlimited_paths=frozenset({IMPORT_PATH}))
