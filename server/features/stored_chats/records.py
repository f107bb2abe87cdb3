"""Stored chat completions, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ...http.response_parts import to_json

MAX_PAGE_BYTES: Final = 16 * 2**20
"""Bytes of stored completions after which a page ends, independent of its limit of entries."""


@dataclass(frozen=True, slots=True)
class StoredChat:
    """A chat completion with its request's messages.

    Attributes:
      model: Name of the model.
      completion: JSON of the completion as its client received it, without metadata.
      messages: JSON of the request's messages as clients list them.
    """

    id: str
    model: str
    completion: bytes
    messages: bytes
    metadata: Mapping[str, str]

    @property
    def num_bytes(self) -> int:
        """Bytes of the JSON."""
        return len(self.completion) + len(self.messages) + len(to_json(self.metadata))

    @property
    def described(self) -> bytes:
        """JSON of the completion with its metadata, assembled without parsing it."""
        return described(self.completion, to_json(self.metadata))


def described(completion: bytes, metadata: bytes) -> bytes:
    """Returns the JSON of a completion with its metadata, from the JSON of both."""
    return completion[:-1] + b',"metadata":' + metadata + b"}"


@dataclass(frozen=True, slots=True)
class ChatFilter:
    """Conditions of the completions in a list.

    Attributes:
      model: Name of their model; None matches all.
      metadata: Pairs that their metadata has.
    """

    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def passes(self, chat: StoredChat) -> bool:
        """Returns whether a completion is in the list."""
        return self.model in (None, chat.model) and self.metadata.items() <= chat.metadata.items()
