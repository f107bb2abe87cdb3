"""What a response was made of, as the items that OpenAI's list has."""

from collections.abc import Iterator
from typing import Any

from ...generation.response_store import StoredResponse
from ..common.paging import Order
from ..common.paging import page as page_of
from .schemas import ChatMessage


def page(stored: StoredResponse, limit: int, order: Order, after: str | None) -> dict[str, Any]:
    """One page of all items, those of the responses before it included; the ids are always the same.


    Raises:
      ApiError: there is no item with the id `after`.
    """
    suffix = stored.id.removeprefix("resp_")
    items = [item for message in stored.asked_messages() for item in _items(message)]
    named = [{**item, "id": f"{item['id']}_{suffix}_{place}"} for place, item in enumerate(items)]
    return page_of(named, limit, order, after, id_of=lambda item: str(item["id"]), describe=lambda item: item)


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
