"""Responses by id: running responses, which clients may abort, and the tokens that clients have received."""

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from ...engine import TenantStore
from ..tenancy.tenant import tenant
from .generation import Generation, SentResponse, engine_request_id

MAX_RESPONSES: Final = 1000
"""Maximum number of ended responses whose records are kept."""

MAX_BYTES: Final = 4 * 2**20
"""Maximum memory of the records of ended responses."""

_OBJECT_BYTES: Final = 1024
"""Memory of a record in addition to its arrays: the objects, the id, and the dictionary entries."""

type _Key = tuple[str, str]
"""Tenant and id."""


@dataclass(frozen=True, slots=True)
class SentChoice:
    """Part of one choice that the client has received.

    Attributes:
      request_id: Id of the engine's request for the choice.
      num_tokens: Number of its generated tokens whose text was sent whole.
    """

    request_id: str
    num_tokens: int


@dataclass(slots=True)
class TrackedResponses:
    """Running responses, and records of recently ended ones. Each tenant sees only its own.

    A running response has two ids: its own, and the id of its HTTP request. Clients may choose the latter, so several
    responses may share one.
    """

    _running: defaultdict[_Key, set[Generation]] = field(default_factory=lambda: defaultdict(set))
    _sent: dict[_Key, SentResponse] = field(default_factory=dict)
    _ended: TenantStore[_Key, SentResponse] = field(default_factory=lambda: TenantStore(MAX_RESPONSES, MAX_BYTES))

    @property
    def num_bytes(self) -> int:
        """Memory that records of ended responses take."""
        return self._ended.num_bytes

    @contextmanager
    def track(self, generation: Generation, response_id: str, request_id: str) -> Iterator[None]:
        """Makes a generation findable by its ids while the `with` block runs, and its sent tokens for some time after
        it.
        """
        key = tenant.get(), response_id
        keys = {key, (key[0], request_id)}
        self._sent[key] = generation.sent
        for each in keys:
            self._running[each].add(generation)
        try:
            yield
        finally:
            for each in keys:
                self._running[each].discard(generation)
                if not self._running[each]:
                    del self._running[each]
            if self._sent.get(key) is generation.sent:  # otherwise a response that was given up is running again
                del self._sent[key]
            self._end(key, generation.sent)

    def abort(self, any_id: str) -> int:
        """Aborts all of the tenant's generations with an id, and returns the number of choices that were unfinished."""
        return sum(generation.abort() for generation in self._running.get((tenant.get(), any_id), ()))

    def find(self, response_id: str, index: int) -> SentChoice | None:
        """Returns the sent part of a choice, by its index in a response; None if it does not exist."""
        key = tenant.get(), response_id
        sent = self._sent.get(key) or self._ended.get(key)
        if sent is None:
            return None
        places = range(len(sent.num_tokens)) if sent.order is None else sent.order
        if index >= len(places):
            return None
        return SentChoice(engine_request_id(response_id, places[index]), sent.num_tokens[places[index]])

    def _end(self, key: _Key, sent: SentResponse) -> None:
        order_bytes = 0 if sent.order is None else sys.getsizeof(sent.order)
        self._ended.put(key, key[0], sent, sys.getsizeof(sent.num_tokens) + order_bytes + _OBJECT_BYTES)
