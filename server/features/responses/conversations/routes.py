"""`/v1/conversations`: stored conversations, which responses continue and add to."""

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from ....errors import kinds
from ....errors.request_errors import ApiError
from ....errors.request_warnings import warn_all
from ....generation.admission import admission
from ....http.openapi import success
from ....http.paging import After, Limit, QueryOrder, described, no_such_entry
from ....http.response_parts import json_response, to_json
from ....http.routes import JsonRoute
from ....http.streaming import until_disconnect
from ....openai.response_schemas import DeletedObject, ItemList
from ....storage.objects import Page, PageSpec
from ..expansion import MAX_ADDED, Room, expanded
from ..open_responses import OpenResponses, Responses
from ..response_store import ResponseStore
from .builder import described_conversation, new_conversation
from .items import new_items
from .records import Item
from .schemas import ConversationBody, ConversationItem, ConversationObject, ItemsBody, MetadataBody
from .store import check, no_conversation

router = APIRouter(route_class=JsonRoute)


@router.post("/v1/conversations", response_model=ConversationObject)
async def create_conversation(body: ConversationBody, responses: Responses, request: Request) -> dict[str, Any]:
    """Creates a conversation, with items if the body has any."""
    items = await _items(body, responses, request)
    record = new_conversation(body.metadata)
    await responses.store.conversations.create(record, items)
    return described_conversation(record)


@router.get("/v1/conversations/{conversation_id}", response_model=ConversationObject)
async def get_conversation(conversation_id: str, responses: Responses) -> dict[str, Any]:
    """Describes a conversation."""
    return described_conversation(await responses.store.conversations.get(conversation_id))


@router.post("/v1/conversations/{conversation_id}", response_model=ConversationObject)
async def update_conversation(conversation_id: str, body: MetadataBody, responses: Responses) -> dict[str, Any]:
    """Replaces the metadata of a conversation."""
    updated = await responses.store.conversations.set_metadata(conversation_id, to_json(body.metadata))
    if updated is None:
        raise no_conversation(conversation_id)
    return described_conversation(updated)


@router.delete("/v1/conversations/{conversation_id}")
async def delete_conversation(conversation_id: str, responses: Responses) -> DeletedObject:
    """Deletes a conversation and its items. Its responses stay; a running one continues, and adds nothing."""
    conversations = responses.store.conversations
    await conversations.get(conversation_id)
    await conversations.remove(conversation_id)
    return DeletedObject(id=conversation_id, object="conversation.deleted", deleted=True)


@router.post("/v1/conversations/{conversation_id}/items", responses=success(ItemList))
async def create_conversation_items(
    conversation_id: str, body: ItemsBody, responses: Responses, request: Request
) -> Response:
    """Adds items to a conversation, and lists them. While a response is running in it, nothing can be added."""
    items = await _items(body, responses, request)
    check(await responses.store.conversations.add(conversation_id, items), conversation_id)
    return _listed(Page(items, has_more=False))


@router.get("/v1/conversations/{conversation_id}/items", responses=success(ItemList))
async def list_conversation_items(
    conversation_id: str,
    responses: Responses,
    limit: Limit = 20,
    order: QueryOrder = "desc",
    after: After = None,
) -> Response:
    """Lists the items of a conversation, page by page."""
    conversations = responses.store.conversations
    await conversations.get(conversation_id)
    found = await conversations.page(conversation_id, PageSpec(limit, after, order == "desc"))
    if found is None:
        raise no_such_entry(after)
    await admission.get().keep(sum(len(item.text) for item in found.items))
    return _listed(found)


@router.get("/v1/conversations/{conversation_id}/items/{item_id}", responses=success(ConversationItem))
async def get_conversation_item(conversation_id: str, item_id: str, responses: Responses) -> Response:
    """Returns an item of a conversation."""
    item = await _item(conversation_id, item_id, responses.store)
    await admission.get().keep(len(item.text))
    return Response(item.text, media_type="application/json")


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}", response_model=ConversationObject)
async def delete_conversation_item(conversation_id: str, item_id: str, responses: Responses) -> dict[str, Any]:
    """Deletes an item, and describes the conversation."""
    conversations = responses.store.conversations
    record = await conversations.get(conversation_id)
    await _item(conversation_id, item_id, responses.store)
    await conversations.remove_item(conversation_id, item_id)
    return described_conversation(record)


async def _items(body: ItemsBody, responses: OpenResponses, request: Request) -> list[Item]:
    """Returns the items of a body, with new ids, unless the client disconnects before.

    Raises:
      ApiError: An item refers to a stored item that does not exist, or the items are too many or too long.
    """
    warn_all(body.dropped)
    own, room = admission.get(), Room(MAX_ADDED, responses.service.admissions.max_expanded_bytes)
    async with until_disconnect(request.receive), expanded(responses.store, room, "items", body.items) as expansion:
        items = await own.run(lambda: new_items(expansion.own))
        await own.keep(sum(len(item.text) for item in items))
        return items


async def _item(conversation_id: str, item_id: str, store: ResponseStore) -> Item:
    """Returns an item.

    Raises:
      ApiError: 404, the conversation or the item does not exist.
    """
    await store.conversations.get(conversation_id)
    if (found := await store.conversations.item(conversation_id, item_id)) is None:
        message = f"there is no item with the id {item_id[:100]!r} in {conversation_id}"
        raise ApiError(kinds.NO_SUCH_OBJECT, message)
    return found


def _listed(found: Page[Item]) -> Response:
    return json_response(described(found, id_of=lambda item: item.id, describe=lambda item: orjson.Fragment(item.text)))
