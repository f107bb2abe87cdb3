"""Responses that clients may ask for again, or go on from. They are kept in memory, so a restart forgets them.

Each tenant knows of its own only, by `tenant`."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .errors import ApiError
from .event_log import EventLog
from .schema import ChatMessage
from .tenant import tenant

type _Key = tuple[str, str]
"""Whose it is, and its id."""

MAX_RESPONSES: Final = 1000
MAX_CHARACTERS: Final = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """
    Attributes:
      response: as the client saw it.
      asked: all messages up to its answer; instructions are no part of it.
      answer: None while it is being made.
      events: of its stream, if that may be followed again.
      characters: what keeping it costs. Messages of earlier responses are counted too, as they may be gone by then.
    """

    response: Mapping[str, Any]
    asked: Sequence[ChatMessage]
    answer: ChatMessage | None
    events: EventLog | None
    characters: int

    @property
    def conversation(self) -> Sequence[ChatMessage]:
        """What another response goes on from."""
        return self.asked if self.answer is None else [*self.asked, self.answer]


class ResponseStore:
    """The newest responses. The oldest make room as soon as there are too many, or too much text in them."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_responses = max_responses
        self._max_characters = max_characters
        self._stored: OrderedDict[_Key, StoredResponse] = OrderedDict()
        self._characters = 0

    def keep(
        self,
        response: Mapping[str, Any],
        asked: Sequence[ChatMessage],
        events: EventLog | None = None,
        answer: ChatMessage | None = None,
    ) -> None:
        """Stores a response, in place of an earlier state of the same."""
        key = _key(response["id"])
        self._drop(key)
        messages = asked if answer is None else [*asked, answer]
        characters = sum(message.num_characters for message in messages) + len(response["instructions"] or "")
        characters += 0 if events is None else events.num_bytes
        self._stored[key] = StoredResponse(response, asked, answer, events, characters)
        self._characters += characters
        while len(self._stored) > self._max_responses or self._characters > self._max_characters:
            self._drop(next(iter(self._stored)))

    def get(self, response_id: str) -> StoredResponse:
        """
        Raises:
          ApiError: it was never stored, is not finished yet, or has made room for others.
        """
        stored = self._stored.get(_key(response_id))
        if stored is None:
            raise ApiError(404, f"there is no stored response with the id {response_id!r}")
        return stored

    def newest_first(self) -> Iterator[StoredResponse]:
        """Gives the tenant's own responses."""
        own = tenant.get()
        return (stored for (owner, _), stored in reversed(self._stored.items()) if owner == own)

    def conversation(self, previous_response_id: str | None) -> Sequence[ChatMessage]:
        """What a response goes on from.

        Raises:
          ApiError: the previous response is not there.
        """
        if previous_response_id is None:
            return ()
        key = _key(previous_response_id)
        if key not in self._stored:
            raise ApiError(
                400,
                f"there is no stored response with the id {previous_response_id!r}",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return self._stored[key].conversation

    def delete(self, response_id: str) -> None:
        """
        Raises:
          ApiError: it is not there.
        """
        self.get(response_id)
        self._drop(_key(response_id))

    def _drop(self, key: _Key) -> None:
        stored = self._stored.pop(key, None)
        if stored is not None:
            self._characters -= stored.characters


def _key(response_id: str) -> _Key:
    return tenant.get(), response_id
