"""Schemas of stored chat completions."""

from typing import Any, Literal, TypedDict

from pydantic import Field

from ...openai.response_schemas import ChatCompletion
from ...schemas.base import Fields
from ...schemas.metadata import Metadata


class ChatMetadataBody(Fields):
    """Body of `POST /v1/chat/completions/{id}`."""

    metadata: Metadata = Field(default_factory=dict)
    """Up to 16 names and values of the client's own, of at most 64 and 512 characters."""


class StoredCompletion(ChatCompletion):
    """A stored chat completion."""

    metadata: dict[str, str]


class StoredCompletionList(TypedDict):
    """One page of stored chat completions."""

    object: Literal["list"]
    data: list[StoredCompletion]
    first_id: str
    last_id: str
    has_more: bool


class StoredMessage(TypedDict):
    """A message of the request of a stored chat completion. It also has the fields of the request's message."""

    id: str
    role: str
    content: str | None
    content_parts: list[dict[str, Any]] | None
    name: str | None
    refusal: str | None


class StoredMessageList(TypedDict):
    """One page of messages."""

    object: Literal["list"]
    data: list[StoredMessage]
    first_id: str
    last_id: str
    has_more: bool
