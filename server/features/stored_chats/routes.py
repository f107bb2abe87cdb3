"""Stored chat completions: the list `GET /v1/chat/completions`, and single completions by their ids."""

import re
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request, Response

from ...database.pages import PageSpec
from ...errors import kinds
from ...errors.request_errors import ApiError, bad_value
from ...generation.admission import admission
from ...http.json_response import json_response
from ...http.openapi import success
from ...http.paging import After, Limit, QueryOrder, described, no_such_entry, page
from ...http.routes import JsonRoute
from ...openai.response_schemas import DeletedObject
from ...schemas.json_limits import LONG_BYTES
from ...schemas.metadata import MAX_PAIRS
from .open_stored_chats import StoredChats
from .records import ChatFilter
from .schemas import ChatMetadataBody, StoredCompletion, StoredCompletionList, StoredMessageList

router = APIRouter(route_class=JsonRoute)

_PAIR: Final = re.compile(r"metadata\[(.*)\]", re.DOTALL)

_METADATA_PARAMETER: Final[dict[str, Any]] = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
    "description": "Names and values that the metadata has, such as `metadata[topic]=sea`.",
}


@router.get(
    "/v1/chat/completions",
    responses=success(StoredCompletionList),
    openapi_extra={"parameters": [_METADATA_PARAMETER]},
)
async def list_chat_completions(
    request: Request,
    chats: StoredChats,
    limit: Limit = 20,
    order: QueryOrder = "asc",
    after: After = None,
    model: Annotated[str | None, Query(description="Name of the model of the completions.")] = None,
) -> Response:
    """Lists stored chat completions, page by page. A page of more than 16 MiB ends early."""
    only = ChatFilter(model, _metadata(request))
    found = await chats.page(PageSpec(limit, after, order == "desc"), only)
    if found is None:
        raise no_such_entry(after)
    return json_response(described(found, id_of=lambda each: each[0], describe=lambda each: orjson.Fragment(each[1])))


@router.get("/v1/chat/completions/{completion_id}", responses=success(StoredCompletion))
async def get_chat_completion(completion_id: str, chats: StoredChats) -> Response:
    """Returns a stored chat completion."""
    return _response(completion_id, await chats.find(completion_id))


@router.post("/v1/chat/completions/{completion_id}", responses=success(StoredCompletion))
async def update_chat_completion(completion_id: str, body: ChatMetadataBody, chats: StoredChats) -> Response:
    """Replaces the metadata of a stored chat completion."""
    return _response(completion_id, await chats.set_metadata(completion_id, body.metadata))


@router.delete("/v1/chat/completions/{completion_id}")
async def delete_chat_completion(completion_id: str, chats: StoredChats) -> DeletedObject:
    """Deletes a stored chat completion."""
    _found(completion_id, await chats.find(completion_id))
    await chats.remove(completion_id)
    return DeletedObject(id=completion_id, object="chat.completion.deleted", deleted=True)


@router.get("/v1/chat/completions/{completion_id}/messages", responses=success(StoredMessageList))
async def list_chat_messages(
    completion_id: str,
    chats: StoredChats,
    limit: Limit = 20,
    order: QueryOrder = "asc",
    after: After = None,
) -> Response:
    """Lists the messages of the request of a stored chat completion, page by page."""
    text, own = _found(completion_id, await chats.messages(completion_id)), admission.get()

    def listed() -> dict[str, Any]:
        messages = own.parse_stored(text)
        return page(messages, limit, order, after, id_of=lambda each: str(each["id"]), describe=lambda each: each)

    return json_response(await own.run(listed, is_long=len(text) >= LONG_BYTES))


def _metadata(request: Request) -> dict[str, str]:
    """Returns the metadata pairs by which a list is filtered.

    Raises:
      ApiError: There are more pairs than metadata may have.
    """
    named = ((_PAIR.fullmatch(name), value) for name, value in request.query_params.multi_items())
    pairs = {found[1]: value for found, value in named if found is not None}
    if len(pairs) > MAX_PAIRS:
        raise bad_value("metadata", f"metadata: a list can be filtered by at most {MAX_PAIRS} pairs, got {len(pairs)}")
    return pairs


def _response(completion_id: str, text: bytes | None) -> Response:
    return Response(_found(completion_id, text), media_type="application/json")


def _found(completion_id: str, text: bytes | None) -> bytes:
    """Returns the text.

    Raises:
      ApiError: 404, the text is None.
    """
    if text is None:
        message = f"there is no stored chat completion with the id {completion_id[:100]!r}"
        raise ApiError(kinds.NO_SUCH_OBJECT, message)
    return text
