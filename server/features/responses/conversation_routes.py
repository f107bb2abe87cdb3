"""`/v1/conversations`: stored conversations, which responses continue and add to."""

import time
from functools import partial
from typing import Annotated, Any, Final, Literal, TypedDict
from uuid import uuid4

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field

from ...errors.request_errors import warn_all
from ...generation.admission import admission, stored_json
from ...http.responses import json_response, to_json, until_disconnect
from ...http.routes import JsonRoute, ListPage, QueryPage, described, page_object, success
from ...openai.response_schemas import DeletedObject
from ...schemas.body import Fields, Metadata
from ...storage.objects import Page
from ...tenants import tenant
from .conversations import CONVERSATIONS, ConversationRecord, Item, delete_item, set_metadata
from .expansion import MAX_ADDED, Room, expanded
from .input_items import ResponseItem, left_out, new_items
from .open_responses import OpenResponses, Responses

_MAX_ADDED: Final = 20
"""Maximum number of items that a request adds, as in OpenAI's API."""

AddedItems = Annotated[list[ResponseItem], Field(fail_fast=True, max_length=_MAX_ADDED)]


class MetadataBody(Fields):
    """Body of `POST /v1/conversations/{id}`."""

    metadata: Metadata = Field(default_factory=dict)
    """Up to 16 names and values of the client's own, of at most 64 and 512 characters."""


class ItemsBody(Fields):
    """Body of `POST /v1/conversations/{id}/items`."""

    items: AddedItems
    """Up to 20 items to add, oldest first. Items that are not kept, such as reasoning, are left out."""


class ConversationBody(MetadataBody, ItemsBody):
    """Body of `POST /v1/conversations`."""

    items: AddedItems = Field(default_factory=list)
    """Up to 20 items to begin with, oldest first. Items that are not kept, such as reasoning, are left out."""


@described
class ConversationObject(TypedDict):
    """A conversation."""

    id: str
    """Id of the conversation."""

    object: Literal["conversation"]
    """Kind of object."""

    created_at: int
    """Time of its creation, in seconds since 1970."""

    metadata: dict[str, str]
    """The client's own strings."""


class ConversationItem(TypedDict):
    """An item of a conversation. Further fields depend on its type."""

    id: str
    type: str
    status: Any


router = APIRouter(route_class=JsonRoute)


@router.post("/v1/conversations", response_model=ConversationObject)
async def create_conversation(body: ConversationBody, responses: Responses, request: Request) -> dict[str, Any]:
    """Creates a conversation, with items if the body has any."""
    items = await _items(body, responses, request)
    record = ConversationRecord(tenant.get(), f"conv_{uuid4().hex}", int(time.time()), to_json(body.metadata))
    await responses.store.conversations.create(record, items)
    return _described(record)


@router.get("/v1/conversations/{conversation_id}", response_model=ConversationObject)
async def get_conversation(conversation_id: str, responses: Responses) -> dict[str, Any]:
    """Describes a conversation."""
    return _described(await responses.store.conversations.get(conversation_id))


@router.post("/v1/conversations/{conversation_id}", response_model=ConversationObject)
async def update_conversation(conversation_id: str, body: MetadataBody, responses: Responses) -> dict[str, Any]:
    """Replaces the metadata of a conversation."""
    conversations = responses.store.conversations
    await conversations.write(partial(set_metadata, metadata=to_json(body.metadata)), conversation_id)
    return _described(await conversations.get(conversation_id))


@router.delete("/v1/conversations/{conversation_id}")
async def delete_conversation(conversation_id: str, responses: Responses) -> DeletedObject:
    """Deletes a conversation and its items. Its responses stay; a running one continues, and adds nothing."""
    conversations = responses.store.conversations
    await conversations.get(conversation_id)
    await conversations.write(CONVERSATIONS.hide, conversation_id)
    return DeletedObject(id=conversation_id, object="conversation.deleted", deleted=True)


@router.post("/v1/conversations/{conversation_id}/items", responses=success(ListPage[dict[str, Any]]))
async def create_conversation_items(
    conversation_id: str, body: ItemsBody, responses: Responses, request: Request
) -> Response:
    """Adds items to a conversation, and lists them. While a response is running in it, nothing can be added."""
    items = await _items(body, responses, request)
    await responses.store.conversations.add(conversation_id, items)
    return _listed(Page(items, has_more=False))


@router.get("/v1/conversations/{conversation_id}/items", responses=success(ListPage[dict[str, Any]]))
async def list_conversation_items(conversation_id: str, responses: Responses, spec: QueryPage) -> Response:
    """Lists the items of a conversation, page by page."""
    conversations = responses.store.conversations
    await conversations.get(conversation_id)
    found = await conversations.items(conversation_id, spec)
    await admission.get().keep(sum(len(item.text) for item in found.items) if found else 0)
    return _listed(found, spec.after)


@router.get("/v1/conversations/{conversation_id}/items/{item_id}", responses=success(ConversationItem))
async def get_conversation_item(conversation_id: str, item_id: str, responses: Responses) -> Response:
    """Returns an item of a conversation."""
    item = await responses.store.conversations.item(conversation_id, item_id)
    await admission.get().keep(len(item.text))
    return Response(item.text, media_type="application/json")


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}", response_model=ConversationObject)
async def delete_conversation_item(conversation_id: str, item_id: str, responses: Responses) -> dict[str, Any]:
    """Deletes an item, and describes the conversation."""
    conversations = responses.store.conversations
    record = await conversations.get(conversation_id)
    await conversations.item(conversation_id, item_id)
    await conversations.write(partial(delete_item, item_id=item_id), conversation_id)
    return _described(record)


async def _items(body: ItemsBody, responses: OpenResponses, request: Request) -> list[Item]:
    """Returns the items of a body, with new ids, unless the client disconnects before.

    Raises:
      ApiError: An item refers to a stored item that does not exist, or the items are too many or too long.
    """
    warn_all(left_out("items", body.items))
    own, room = admission.get(), Room(MAX_ADDED, responses.service.admissions.max_expanded_bytes)
    async with until_disconnect(request.receive), expanded(responses.store, room, "items", body.items) as (_, added):
        items = await own.run(lambda: new_items(added))
        await own.keep(sum(len(item.text) for item in items))
        return items


def _listed(found: Page[Item] | None, after: str | None = None) -> Response:
    return json_response(page_object(found, after, lambda item: item.id, lambda item: orjson.Fragment(item.text)))


def _described(record: ConversationRecord) -> dict[str, Any]:
    """Returns a conversation in the form that clients receive."""
    metadata = stored_json(record.metadata)
    return {"id": record.id, "object": "conversation", "created_at": record.created, "metadata": metadata}
