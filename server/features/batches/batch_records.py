"""Rows of files and batches, as frozen values."""

from dataclasses import dataclass
from enum import StrEnum


class BatchStatus(StrEnum):
    """Status of a batch, in OpenAI's words."""

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
      url: Endpoint of all lines of an input; empty for an output, and if they name several.
    """

    tenant: str
    id: str
    created: float
    purpose: str
    name: str
    num_bytes: int
    num_lines: int
    url: str = ""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch.

    Attributes:
      model: Identity of the model; only replicas that serve the same one run its lines.
      url: Endpoint of its lines.
      input_file, output_file, error_file: Ids of its files. The last two exist once the batch has ended, if they have
        a line.
      window: The client's `completion_window`.
      metadata: JSON of the client's metadata.
      created, expires: Times, in seconds since 1970.
      ended: Time at which it reached its last status; None before.
      num_lines: Number of lines of its input.
      num_completed: Number of lines with a successful response.
      num_failed: Number of lines with an error.
    """

    tenant: str
    id: str
    status: BatchStatus
    model: str
    url: str
    input_file: str
    output_file: str
    error_file: str
    window: str
    metadata: bytes
    created: float
    expires: float
    ended: float | None
    num_lines: int
    num_completed: int = 0
    num_failed: int = 0


@dataclass(frozen=True, slots=True)
class LineLease:
    """Right of one replica to end a line.

    Attributes:
      number: Number of the line in the input, from 1.
      fence: Fencing number. Each new owner gets a higher one, and writes with a lower one are refused.
    """

    tenant: str
    batch: str
    number: int
    fence: int


@dataclass(frozen=True, slots=True)
class LineClaim:
    """A line that a replica has claimed.

    Attributes:
      data: The line of the input.
      model: Identity of its batch's model.
      num_claims: Number of replicas that have claimed it, this one included.
      is_expired: Whether its batch has passed its completion window, so that it is not run any more.
    """

    lease: LineLease
    data: bytes
    model: str
    num_claims: int
    is_expired: bool


@dataclass(frozen=True, slots=True)
class LineResult:
    """Output line of a line that has ended.

    Attributes:
      line: Line of the output file or the error file.
      is_failed: Whether it belongs to the error file.
    """

    line: bytes
    is_failed: bool


@dataclass(frozen=True, slots=True)
class BatchTotals:
    """Batches of all replicas and tenants, for metrics.

    Attributes:
      batches: Number of batches by status.
      waiting_lines: Number of lines of batches in progress that have not ended.
      running_lines: Number of those that a replica has claimed.
      oldest_s: Age of the oldest batch in progress, in seconds; 0 without one.
    """

    batches: dict[str, int]
    waiting_lines: int
    running_lines: int
    oldest_s: float
