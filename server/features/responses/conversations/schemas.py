"""Schemas of `/v1/conversations`."""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypedDict

from pydantic import Field

from ....http.openapi import described
from ....schemas.body import Fields
from ....schemas.metadata import Metadata
from ..input_items import OtherItem, ResponseItem

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

    @property
    def dropped(self) -> Iterator[str]:
        """Names of the items that are left out, for warnings."""
        for index, item in enumerate(self.items):
            if isinstance(item, OtherItem) and item.type != "reasoning":
                yield f"items[{index}]: {item.type}"


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
