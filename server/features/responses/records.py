"""Rows of the store, as frozen values."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...database.group_commit import WriteLoad
from ...storage.work import Claim, Lease
from .conversation_table import Item, Turn, load_of


@dataclass(frozen=True, slots=True)
class Job:
    """Request of a response, in a form from which a replica can generate it.

    Attributes:
      model: Identity of the model; only replicas that serve the same model may adopt the response.
      request: JSON of the request, without its input.
      prompt: Token ids of the prompt, as little-endian int32.
      engine: Identity of the engine that generates it. Only the same engine repeats its tokens bit for bit. None if the
        engine has no checkpoints, or the prompt continues an imported state.
      turn: Turn of the response in its conversation; None if it has none, and in every job that was read from the
        database.
    """

    model: str
    request: bytes
    prompt: bytes
    engine: str | None = None
    turn: Turn | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that the job takes, without its turn."""
        return len(self.request) + len(self.prompt)


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """A stored response.

    Attributes:
      response: JSON of the response as clients receive it.
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

    @property
    def num_bytes(self) -> int:
        """Bytes that the response takes, without its job and its log."""
        return len(self.response) + len(self.history) + len(self.output)

    def load(self, num_bytes: int = 0, items: Sequence[Item] = ()) -> WriteLoad:
        """Returns the load of a write that stores the response.

        Args:
          num_bytes: Bytes that are stored with it.
          items: Items that are stored with it.
        """
        return load_of(items).plus(WriteLoad(1, self.num_bytes + num_bytes))


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

    @property
    def num_bytes(self) -> int:
        """Bytes that the entry takes."""
        return len(self.delta) + len(self.events)


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Counts at the end of a log.

    Attributes:
      num_entries: Number of its next entry.
      num_events: Number of its next event.
      num_tokens: Number of generated tokens.
      num_bytes: Bytes of all entries.
    """

    num_entries: int = 0
    num_events: int = 0
    num_tokens: int = 0
    num_bytes: int = 0

    def after(self, entry: LogEntry) -> "LogEnd":
        """Returns the log's end after its next entry."""
        return LogEnd(
            entry.number + 1,
            entry.first_event + entry.num_events,
            entry.first_token + entry.num_tokens,
            self.num_bytes + entry.num_bytes,
        )


@dataclass(frozen=True, slots=True)
class CheckpointReference:
    """Reference to a saved state of the engine.

    Attributes:
      name: Name of the state file.
      num_tokens: Number of generated tokens that the state has read.
    """

    name: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Adoption:
    """A running response that a replica has adopted.

    Attributes:
      request, prompt: See `Job`.
      log: End of its log.
      engine: Engine of the replica if an engine like it has decoded all tokens of the log, one after the other, so that
        it continues them exactly; None if not.
      checkpoint: Latest saved state; None if it has none.
    """

    claim: Claim
    record: ResponseRecord
    request: bytes
    prompt: bytes
    log: LogEnd
    engine: str | None
    checkpoint: CheckpointReference | None

    @property
    def lease(self) -> Lease:
        """Right to write to the response."""
        return self.claim.lease
