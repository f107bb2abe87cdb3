"""What clients have received of answers, so that a saved state holds exactly that."""

import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from ...engine import TenantStore
from ..tenancy.tenant import tenant

MAX_ANSWERS: Final = 1000
MAX_BYTES: Final = 4 * 2**20

_OBJECT_BYTES: Final = 1024
"""What an entry takes beside its arrays: the objects, its id, and its places in dictionaries."""

type _Key = tuple[str, str]
"""Tenant and answer id."""


@dataclass(slots=True)
class SentAnswer:
    """What a client has received of one answer.

    Attributes:
      num_tokens: Number of generated tokens whose text was sent whole, for each of the engine's requests.
      order: Index of the engine's request behind each choice of the answer; None where they are the same, as in all
        answers but those of `best_of`.
    """

    num_tokens: "array[int]"
    order: "array[int] | None" = None

    @classmethod
    def of(cls, num_choices: int) -> "SentAnswer":
        """An answer of which nothing was sent."""
        return cls(array("i", bytes(4 * num_choices)))

    @property
    def num_bytes(self) -> int:
        """Memory that keeping it takes."""
        order = 0 if self.order is None else sys.getsizeof(self.order)
        return sys.getsizeof(self.num_tokens) + order + _OBJECT_BYTES

    def reorder(self, order: Sequence[int]) -> None:
        """Notes which of the engine's requests the answer's choices are."""
        if list(order) != list(range(len(self.num_tokens))):
            self.order = array("i", order)


@dataclass(frozen=True, slots=True)
class SentChoice:
    """
    Attributes:
      request_id: The engine's id of the request behind a choice.
      num_tokens: Number of its generated tokens whose text was sent whole.
    """

    request_id: str
    num_tokens: int


@dataclass(slots=True)
class SentAnswers:
    """Answers that are being sent, and the newest that ended. Each tenant sees its own only."""

    _open: dict[_Key, SentAnswer] = field(default_factory=dict)
    _ended: TenantStore[_Key, SentAnswer] = field(default_factory=TenantStore)

    @property
    def num_bytes(self) -> int:
        """Memory that ended answers take."""
        return self._ended.num_bytes

    @contextmanager
    def track(self, answer_id: str, num_choices: int) -> Iterator[SentAnswer]:
        """Keeps the record of an answer: while the `with` block runs, and for a while after it."""
        key = tenant.get(), answer_id
        answer = self._open[key] = SentAnswer.of(num_choices)
        try:
            yield answer
        finally:
            del self._open[key]
            self._ended.put(key, key[0], answer, answer.num_bytes)
            self._ended.make_room(MAX_ANSWERS, MAX_BYTES)

    def find(self, answer_id: str, index: int) -> SentChoice | None:
        """A choice of an answer, by its index in the answer; None if there is none such."""
        key = tenant.get(), answer_id
        answer = self._open.get(key) or self._ended.get(key)
        if answer is None:
            return None
        places = range(len(answer.num_tokens)) if answer.order is None else answer.order
        if index >= len(places):
            return None
        return SentChoice(f"{answer_id}-{places[index]}", answer.num_tokens[places[index]])
