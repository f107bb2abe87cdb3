"""Limits that apply to every request."""

import math
from dataclasses import dataclass

from .choice_stream import MAX_UNREAD_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that apply to every request.

    Attributes:
      max_choices: Maximum number of choices of one request; more could never be admitted together.
      max_choices_tokens: Maximum prompt tokens of all choices of a request that needs more slots than exist; more could
        never wait together. None sets no limit.
      max_prompt_tokens: Maximum tokens of a prompt; None leaves only the limit on the body.
      keep_alive_s: Seconds of silence after which a stream sends a keep-alive.
      proof_s: Timeout of a health check's generation, in seconds.
      request_timeout_s: Maximum time of any request, in seconds.
      max_unread_bytes: Maximum estimated memory of a choice's deltas that a slow reader leaves unread.
    """

    max_choices: int = 256
    max_choices_tokens: int | None = None
    max_prompt_tokens: int | None = None
    keep_alive_s: float = 15.0
    proof_s: float = 10.0
    request_timeout_s: float = math.inf
    max_unread_bytes: int = MAX_UNREAD_BYTES
