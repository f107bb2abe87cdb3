"""Input of a response, as the items of OpenAI's list."""

from collections.abc import Iterator
from typing import Any

from ...generation.conversation import ConversationMessage
from ...generation.response_store import StoredResponse
from ..common.paging import Order
from ..common.paging import page as page_of


def page(stored: StoredResponse, limit: int, order: Order, after: str | None) -> dict[str, Any]:
    """Returns one page of the items, those of previous responses included. The ids are always the same.

    Raises:
      ApiError: There is no item with the id `after`.
    """
    suffix = stored.id.removeprefix("resp_")
    items = [item for message in stored.input_messages() for item in _items(message)]
    named = [{**item, "id": f"{item['id']}_{suffix}_{place}"} for place, item in enumerate(items)]
    return page_of(named, limit, order, after, id_of=lambda item: str(item["id"]), describe=lambda item: item)


def _items(message: ConversationMessage) -> Iterator[dict[str, Any]]:
    """Yields the items of a message, one for each of its calls. Their ids are prefixes only."""
    done = {"status": "completed"}
    if message.role == "tool":
        call_id = message.call_id
        yield {"id": "fco", "type": "function_call_output", "call_id": call_id, "output": message.text, **done}
        return
    if message.text or not message.calls:
        yield {"id": "msg", "type": "message", "role": message.role, "content": _content(message), **done}
    for call in message.calls:
        function = {"name": call.name, "arguments": call.arguments}
        yield {"id": "fc", "type": "function_call", "call_id": call.id, **function, **done}


def _content(message: ConversationMessage) -> list[dict[str, Any]]:
    texts = [message.text] if isinstance(message.content, str) else message.content or ()
    if message.role == "assistant":
        return [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return [{"type": "input_text", "text": text} for text in texts]
