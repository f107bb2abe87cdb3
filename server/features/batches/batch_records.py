"""Rows of files and batches, as frozen values."""

from dataclasses import dataclass
from enum import StrEnum

from ...storage.work import Claim, Lease
from .batch_lines import NO_USAGE, TokenUsage


class BatchStatus(StrEnum):
    """Status of a batch, with OpenAI's values."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A stored file of lines.

    Attributes:
      created: Seconds since 1970.
      purpose: "batch" for an input, "batch_output" for an output.
      name: Name that the client gave.
      num_bytes: Size of all lines.
      num_lines: Number of lines.
      url: Endpoint of all lines of an input; empty for an output, and for an input whose lines name several.
      expires: Deletion time, in seconds since 1970; None applies the store's retention period.
    """

    tenant: str
    id: str
    created: float
    purpose: str
    name: str
    num_bytes: int
    num_lines: int
    url: str = ""
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch.

    Attributes:
      model: Identity of the model; only replicas that serve the same model run the batch's lines.
      url: Endpoint of its lines.
      input_file, output_file, error_file: Ids of its files. After the batch has ended, the output and error files exist
      if they have a line.
      time_window: The client's `completion_window`.
      metadata: JSON of the client's metadata.
      created, expires: Times, in seconds since 1970.
      ended: Time at which it reached its final status; None while it is in progress.
      num_lines: Number of lines of its input.
      num_completed: Number of lines with a successful response.
      num_failed: Number of lines with an error.
      output_expires_s: Seconds between the batch's end and the deletion of its files; None applies the store's
        retention period.
      input_tokens, cached_tokens, output_tokens: Token counts of the responses of its lines.
    """

    tenant: str
    id: str
    status: BatchStatus
    model: str
    url: str
    input_file: str
    output_file: str
    error_file: str
    time_window: str
    metadata: bytes
    created: float
    expires: float
    ended: float | None
    num_lines: int
    num_completed: int = 0
    num_failed: int = 0
    output_expires_s: float | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LineClaim:
    """A line that a replica has claimed.

    Attributes:
      data: The line of the input.
      model: Identity of its batch's model.
      is_expired: Whether its batch has passed its completion window. Such a line does not run any more.
    """

    claim: Claim
    data: bytes
    model: str
    is_expired: bool

    @property
    def lease(self) -> Lease:
        """Right to end the line."""
        return self.claim.lease


@dataclass(frozen=True, slots=True)
class LineResult:
    """Output line of a line that has ended.

    Attributes:
      line: Line of the output file or the error file.
      is_failed: Whether the line belongs to the error file.
      usage: Token counts of its response.
    """

    line: bytes
    is_failed: bool
    usage: TokenUsage = NO_USAGE


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Counts of batches of all replicas and tenants, for metrics.

    Attributes:
      batches: Number of batches by status.
      waiting_lines: Number of lines of batches in progress that have not ended.
      running_lines: Number of these lines that a replica has claimed.
      oldest_s: Age of the oldest batch in progress, in seconds; 0 if no batch is in progress.
      needed_lines_per_s: Rate at which lines must end so that each batch in progress ends in its window.
    """

    batches: dict[str, int]
    waiting_lines: int
    running_lines: int
    oldest_s: float
    needed_lines_per_s: float = 0.0
