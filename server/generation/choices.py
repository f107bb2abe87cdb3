"""The choices of a request, as the engine is asked for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...engine import Request, SamplingParams, Snapshot
from ..text.grammar import Grammar
from .prompts import Prompt


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is served; see `engine.Request`."""

    tenant: str = ""
    priority: int = 0
    start_by: float = math.inf
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer to be made.

    Attributes:
      index: its place among the answers of the HTTP request.
      stop: Strings that end it; the choices of a request share one `StopStrings`.
      fork_of: the choice whose prompt is this one's too, and is read before.
      include_stop: whether the stop string, or the text of a stop token, is part of the answer.
      grammar: what the answer has to keep to, if anything.
      may_call: whether the answer may consist of calls of tools, which are then told from text.
      terms: the HTTP request's.
      cache_salt, state, state_is_imported: see `Request`.
      sends_ids: Whether token ids are the answer; then each counts as sent whatever its text is.
    """

    index: int
    prompt: Prompt
    params: SamplingParams
    stop: Sequence[str] = ()
    include_stop: bool = False
    fork_of: int | None = None
    grammar: Grammar | None = None
    may_call: bool = False
    terms: Terms = Terms()
    cache_salt: str = ""
    state: Snapshot | None = None
    state_is_imported: bool = False
    sends_ids: bool = False

    def request(self, request_id: str) -> Request:
        """What the engine is asked for.

        Args:
          request_id: of all choices together.
        """
        return Request(
            f"{request_id}-{self.index}",
            self.prompt.token_ids,
            self.params,
            stepwise=bool(self.stop),
            fork_of=None if self.fork_of is None else f"{request_id}-{self.fork_of}",
            constraint=None if self.grammar is None else self.grammar.constraint(),
            tenant=self.terms.tenant,
            priority=self.terms.priority,
            start_by=self.terms.start_by,
            deadline=self.terms.deadline,
            cache_salt=self.cache_salt,
            state=self.state,
            state_is_imported=self.state_is_imported,
        )
