"""What a response was made of, as the items that OpenAI's list has."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from .errors import ApiError, bad_value
from .response_store import ResponseStore, StoredResponse
from .schema import ChatMessage


def input_items(stored: StoredResponse) -> list[dict[str, Any]]:
    """All items, oldest first, those of the responses before it included; the ids are always the same."""
    suffix = stored.response["id"].removeprefix("resp_")
    items = [item for message in stored.asked for item in _items(message)]
    return [{**item, "id": f"{item['id']}_{suffix}_{place}"} for place, item in enumerate(items)]


def find_item(store: ResponseStore, item_id: str) -> ChatMessage:
    """Returns the message that an item of a stored response's output stands for.

    Raises:
      ApiError: none of the tenant's stored responses has such an item.
    """
    for stored in store.newest_first():
        for item in stored.response["output"]:
            if item["id"] == item_id and stored.answer is not None:
                return stored.answer if item["type"] == "message" else _call_message(stored.answer, item["call_id"])
    raise ApiError(404, f"there is no stored item with the id {item_id[:100]!r}", param="input")


def _call_message(answer: ChatMessage, call_id: str) -> ChatMessage:
    calls = [call for call in answer.tool_calls or () if call.id == call_id]
    return ChatMessage(role="assistant", tool_calls=calls)


def page(
    items: Sequence[dict[str, Any]], limit: int, order: Literal["asc", "desc"], after: str | None
) -> dict[str, Any]:
    """So many of the items in this order, behind the one with the id `after`.

    Raises:
      ApiError: there is no such item.
    """
    ordered = list(items) if order == "asc" else list(reversed(items))
    ids = [item["id"] for item in ordered]
    if after is not None and after not in ids:
        raise bad_value("after", f"the response has no input item with the id {after!r}")
    start = 0 if after is None else ids.index(after) + 1
    chosen = ordered[start : start + limit]
    return {
        "object": "list",
        "data": chosen,
        "first_id": chosen[0]["id"] if chosen else "",
        "last_id": chosen[-1]["id"] if chosen else "",
        "has_more": start + limit < len(ordered),
    }


def _items(message: ChatMessage) -> Iterator[dict[str, Any]]:
    """The ids are only prefixes yet. A message of the assistant's may be several items, a call each."""
    done = {"status": "completed"}
    if message.role == "tool":
        call_id = message.tool_call_id
        yield {"id": "fco", "type": "function_call_output", "call_id": call_id, "output": message.text, **done}
        return
    if message.text or not message.tool_calls:
        yield {"id": "msg", "type": "message", "role": message.role, "content": _content(message), **done}
    for call in message.tool_calls or ():
        function = {"name": call.function.name, "arguments": call.function.arguments}
        yield {"id": "fc", "type": "function_call", "call_id": call.id, **function, **done}


def _content(message: ChatMessage) -> list[dict[str, Any]]:
    texts = [message.text] if isinstance(message.content, str) else [part.text for part in message.content or ()]
    if message.role == "assistant":
        return [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return [{"type": "input_text", "text": text} for text in texts]
