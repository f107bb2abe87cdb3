"""Token counts of an HTTP request for its line in the access log."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from .request_metrics import Observer, RequestRecord


@dataclass(slots=True)
class RequestTokens:
    """Token counts of the ended choices of one HTTP request.

    Attributes:
      prompt: Number of tokens of its prompts. Each prompt is counted once for all of its choices.
      cached: Number of prompt tokens that were served from the prefix cache.
      completion: Number of generated tokens.
      first_token_s: Shortest time from a choice's arrival at the engine to its first token in seconds; None without
        tokens.
      num_choices: Number of choices.
    """

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    first_token_s: float | None = None
    num_choices: int = 0

    def add(self, record: RequestRecord) -> None:
        """Adds a choice."""
        self.num_choices += 1
        self.completion += record.num_tokens
        if record.request.fork_of is None:
            self.prompt += len(record.request.prompt_token_ids)
            self.cached += record.num_cached
        if record.first_token is not None:
            found = record.first_token - record.arrived
            self.first_token_s = found if self.first_token_s is None else min(found, self.first_token_s)

    def fields(self, model: str) -> Mapping[str, str | int | float]:
        """Returns the fields of a log line; none for a request that generates nothing."""
        if not self.num_choices:
            return {}
        tokens = {"prompt_tokens": self.prompt, "cached_tokens": self.cached, "completion_tokens": self.completion}
        times = {} if self.first_token_s is None else {"time_to_first_token": round(self.first_token_s, 3)}
        return {"model": model, **tokens, **times}


request_tokens: Final[ContextVar[RequestTokens | None]] = ContextVar("request_tokens", default=None)
"""Tokens of the current HTTP request."""


class AccessLogObserver(Observer):
    """Adds each choice to the token counts of its HTTP request."""

    def on_end(self, record: RequestRecord) -> None:
        if (tokens := request_tokens.get()) is not None:
            tokens.add(record)
