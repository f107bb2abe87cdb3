"""Rows of the store, as frozen values."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Job:
    """Request of a response, in the form in which a replica can generate it.

    Attributes:
      model: Identity of the model; only replicas that serve the same one may adopt the response.
      request: JSON of the request, without its input.
      prompt: Token ids of the prompt, as little-endian int32.
      engine: Identity of the engine that generates it. Only the same one repeats its tokens bit for bit. None if the
        engine has no checkpoints, or a replica of an older version stored the job.
    """

    model: str
    request: bytes
    prompt: bytes
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """A stored response.

    Attributes:
      response: JSON of the response as clients see it.
      history: JSON of the messages before the response's own.
      output: JSON of the response's own message in a list, which is empty until the response has ended.
      is_background: Whether the response is or was generated in the background.
      is_streamed: Whether the log keeps the events of its stream.
      is_running: Whether the response has not ended.
    """

    tenant: str
    id: str
    response: bytes
    history: bytes
    output: bytes
    is_background: bool = False
    is_streamed: bool = False
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """Right of one owner to write to a running response.

    Attributes:
      fence: Fencing number. Each new owner gets a higher one, and writes with a lower one are refused.
    """

    tenant: str
    id: str
    fence: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Tokens and events that were committed together.

    Attributes:
      number: Place in the log, from 0.
      first_event: Sequence number of the first event.
      num_events: Number of events.
      first_token: Index of the first generated token.
      num_tokens: Number of generated tokens.
      delta: JSON of the delta that the events were built from; empty without tokens.
      events: Encoded events, one after the other; empty if the response is not streamed.
    """

    number: int
    first_event: int
    num_events: int
    first_token: int
    num_tokens: int
    delta: bytes = b""
    events: bytes = b""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Reference to a saved state of the engine.

    Attributes:
      name: Name of the state file.
      num_tokens: Number of generated tokens that the state has read.
    """

    name: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A running response that a replica has adopted.

    Attributes:
      num_stalls: Number of adoptions since the last token or checkpoint, this one included.
      is_exact: Whether every logged token was decoded by an engine like the claiming replica's, one after the other.
      checkpoint: Latest saved state; None if there is none.
      entries: The whole log.
    """

    lease: Lease
    record: ResponseRecord
    job: Job
    num_stalls: int
    is_exact: bool = False
    checkpoint: Checkpoint | None = None
    entries: Sequence[LogEntry] = field(default=())
