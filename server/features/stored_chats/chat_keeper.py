"""Stores chat completions whose requests have `store: true`."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from ...http.error_responses import refusal
from ...http.response_parts import to_json
from ...openai.schemas import ChatBody
from ...schemas.generation_fields import ChatMessage
from ...schemas.metadata import Metadata
from .chat_store import ChatStore
from .records import StoredChat

_METADATA: Final = TypeAdapter[dict[str, str]](Metadata)


class StoringChatKeeper:
    """Stores chat completions for as long as the server runs."""

    def __init__(self, store: ChatStore) -> None:
        self._store = store

    def keeping(self, body: ChatBody) -> Callable[[Mapping[str, Any]], Awaitable[None]]:
        """Returns a function that stores the completion of a request.

        Raises:
          ApiError: The metadata cannot be stored.
        """
        metadata = _checked(body.metadata)

        async def keep(completion: Mapping[str, Any]) -> None:
            chat_id = str(completion["id"])
            shown = [described_message(f"{chat_id}-{place}", each) for place, each in enumerate(body.messages)]
            texts = bytes(memoryview(to_json(completion))), bytes(memoryview(to_json(shown)))
            await self._store.put(StoredChat(chat_id, str(completion["model"]), *texts, metadata))

        return keep


def described_message(message_id: str, message: ChatMessage) -> dict[str, Any]:
    """Returns a message of a request as clients list it: with its text parts, if any, and their joined text."""
    fields = message.model_dump(by_alias=True, exclude_unset=True)
    content = fields.get("content")
    parts = content if isinstance(content, list) else None
    text = (
        content
        if parts is None
        else "\n".join(part.text for part in message.content or () if not isinstance(part, str))
    )
    return {"refusal": None, "name": None, **fields, "id": message_id, "content": text, "content_parts": parts}


def _checked(metadata: Any) -> dict[str, str]:
    try:
        return _METADATA.validate_python({} if metadata is None else metadata, strict=True)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        raise refusal(detail, ("metadata", *detail["loc"]), metadata) from None
