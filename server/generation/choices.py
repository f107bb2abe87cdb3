"""The choices of a request, and the engine's request for each of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...engine import Request, SamplingParams, Snapshot
from ..text.grammar import Grammar
from .prompts import Prompt


@dataclass(frozen=True, slots=True)
class SchedulingParameters:
    """Scheduling parameters of a request; see `engine.Request`."""

    tenant: str = ""
    priority: int = 0
    start_by: float = math.inf
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice to generate.

    Attributes:
      index: Place among the choices of the request.
      stop: Strings that end the output; the choices of a request share one `StopStrings`.
      fork_of: Index of the earlier choice with the same prompt, whose prefill this choice shares.
      include_stop: Whether the output includes the stop string, or the text of the stop token, that ended it.
      grammar: Grammar that the output matches.
      may_call: Whether the output may consist of tool calls, which are then parsed.
      scheduling: Scheduling parameters of the request.
      cache_salt, state, state_is_imported: See `engine.Request`.
      sends_ids: Whether clients receive token ids instead of text; then each token counts as sent at once.
    """

    index: int
    prompt: Prompt
    params: SamplingParams
    stop: Sequence[str] = ()
    include_stop: bool = False
    fork_of: int | None = None
    grammar: Grammar | None = None
    may_call: bool = False
    scheduling: SchedulingParameters = SchedulingParameters()
    cache_salt: str = ""
    state: Snapshot | None = None
    state_is_imported: bool = False
    sends_ids: bool = False

    def request(self, request_id: str) -> Request:
        """Returns the engine's request for this choice.

        Args:
          request_id: Id of all choices together.
        """
        return Request(
            f"{request_id}-{self.index}",
            self.prompt.token_ids,
            self.params,
            stepwise=bool(self.stop),
            fork_of=None if self.fork_of is None else f"{request_id}-{self.fork_of}",
            constraint=None if self.grammar is None else self.grammar.constraint(),
            tenant=self.scheduling.tenant,
            priority=self.scheduling.priority,
            start_by=self.scheduling.start_by,
            deadline=self.scheduling.deadline,
            cache_salt=self.cache_salt,
            state=self.state,
            state_is_imported=self.state_is_imported,
        )
