"""Tracks which part of a response its client has received, so that a saved state holds exactly that."""

import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from ...engine import TenantStore
from ..tenancy.tenant import tenant

MAX_RESPONSES: Final = 1000
"""Maximum number of ended responses that are kept."""

MAX_BYTES: Final = 4 * 2**20
"""Maximum memory of ended responses."""

_OBJECT_BYTES: Final = 1024
"""Memory of an entry apart from its arrays: the objects, the id, and the places in dictionaries."""

type _Key = tuple[str, str]
"""Tenant and response id."""


@dataclass(slots=True)
class SentResponse:
    """Part of one response that the client has received.

    Attributes:
      num_tokens: Number of generated tokens whose text was sent whole, for each of the engine's requests.
      order: Index of the engine's request behind each choice of the response; None if they are the same, as in all
        responses without `best_of`.
    """

    num_tokens: "array[int]"
    order: "array[int] | None" = None

    @classmethod
    def of(cls, num_choices: int) -> "SentResponse":
        """Returns the record of a response that nothing was sent of."""
        return cls(array("i", bytes(4 * num_choices)))

    @property
    def num_bytes(self) -> int:
        """Memory that the record takes."""
        order = 0 if self.order is None else sys.getsizeof(self.order)
        return sys.getsizeof(self.num_tokens) + order + _OBJECT_BYTES

    def reorder(self, order: Sequence[int]) -> None:
        """Records which of the engine's requests the response's choices are."""
        if list(order) != list(range(len(self.num_tokens))):
            self.order = array("i", order)


@dataclass(frozen=True, slots=True)
class SentChoice:
    """Part of one choice that the client has received.

    Attributes:
      request_id: Id of the engine's request behind the choice.
      num_tokens: Number of its generated tokens whose text was sent whole.
    """

    request_id: str
    num_tokens: int


@dataclass(slots=True)
class SentResponses:
    """Records of open responses and of the newest that ended. Each tenant sees its own only."""

    _open: dict[_Key, SentResponse] = field(default_factory=dict)
    _ended: TenantStore[_Key, SentResponse] = field(default_factory=TenantStore)

    @property
    def num_bytes(self) -> int:
        """Memory that ended responses take."""
        return self._ended.num_bytes

    @contextmanager
    def track(self, response_id: str, num_choices: int) -> Iterator[SentResponse]:
        """Keeps the record of a response while the `with` block runs, and for some time after it."""
        key = tenant.get(), response_id
        response = self._open[key] = SentResponse.of(num_choices)
        try:
            yield response
        finally:
            del self._open[key]
            self._ended.put(key, key[0], response, response.num_bytes)
            self._ended.make_room(MAX_RESPONSES, MAX_BYTES)

    def find(self, response_id: str, index: int) -> SentChoice | None:
        """Returns a choice by its index in a response; None if there is none."""
        key = tenant.get(), response_id
        response = self._open.get(key) or self._ended.get(key)
        if response is None:
            return None
        places = range(len(response.num_tokens)) if response.order is None else response.order
        if index >= len(places):
            return None
        return SentChoice(f"{response_id}-{places[index]}", response.num_tokens[places[index]])
