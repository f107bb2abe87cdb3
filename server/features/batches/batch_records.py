"""Rows of files and batches, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

SUSPECT_DEATHS: Final = 2
"""Number of deaths of a line's owners at which the line is a suspect and runs alone."""

MAX_LONE_DEATHS: Final = 3
"""Number of deaths of owners that ran a line alone, after which the line fails."""


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


class TokenUsage(NamedTuple):
    """Token counts of the responses of lines.

    Attributes:
      input: Prompt tokens, including those served from the prefix cache.
      cached: Prompt tokens served from the prefix cache.
      output: Generated tokens.
    """

    input: int = 0
    cached: int = 0
    output: int = 0

    @classmethod
    def of(cls, response: Mapping[str, Any]) -> "TokenUsage":
        """Returns the tokens that a response reports, with the field names of any of the APIs.

        Raises:
          KeyError: It reports none.
        """
        usage = response["usage"]
        if "cache_read_input_tokens" in usage:  # Anthropic's `input_tokens` leaves cached tokens out
            cached = usage["cache_read_input_tokens"]
            num_prompt = usage["input_tokens"] + usage["cache_creation_input_tokens"] + cached
            return cls(num_prompt, cached, usage["output_tokens"])
        prompt, generated = ("prompt", "completion") if "prompt_tokens" in usage else ("input", "output")
        cached = (usage.get(f"{prompt}_tokens_details") or {}).get("cached_tokens", 0)
        return cls(usage[f"{prompt}_tokens"], cached, usage[f"{generated}_tokens"])


NO_USAGE: Final = TokenUsage()


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
class LineLease:
    """Right of one replica to end a line.

    Attributes:
      number: Number of the line in the input, from 1.
      fence: Fencing number. Each new owner gets a higher number, and writes with a lower one are refused.
    """

    tenant: str
    batch: str
    number: int
    fence: int

    @property
    def values(self) -> tuple[str, str, int, int]:
        """Values that identify the lease in a statement."""
        return self.tenant, self.batch, self.number, self.fence


@dataclass(frozen=True, slots=True)
class LineClaim:
    """A line that a replica has claimed.

    Attributes:
      data: The line of the input.
      model: Identity of its batch's model.
      is_expired: Whether its batch has passed its completion window. Such a line does not run any more.
      num_deaths: Number of replicas whose leases on the line ended without the line being given back.
      num_lone_deaths: Number of these replicas that ran no other line at that time.
    """

    lease: LineLease
    data: bytes
    model: str
    is_expired: bool
    num_deaths: int = 0
    num_lone_deaths: int = 0

    @property
    def may_be_deadly(self) -> bool:
        """Whether the line may have caused the deaths of its owners. Such a line is parsed only while no other line is
        open.
        """
        return self.num_deaths >= SUSPECT_DEATHS

    @property
    def is_deadly(self) -> bool:
        """Whether the line has reached the maximum number of lone deaths, and must not run again."""
        return self.num_lone_deaths >= MAX_LONE_DEATHS

    @property
    def runs_alone(self) -> bool:
        """Whether the line must run while no other line is open."""
        return self.may_be_deadly and not self.is_deadly and not self.is_expired


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
    """

    batches: dict[str, int]
    waiting_lines: int
    running_lines: int
    oldest_s: float
