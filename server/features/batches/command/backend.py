"""Interface of the backends that respond to the lines of a batch."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..batch_lines import BatchLine


class NoResponseError(Exception):
    """No server has responded to a line. The line should be sent again."""


@dataclass(frozen=True, slots=True)
class LineResponse:
    """Response to a line.

    Attributes:
      status: HTTP status.
      body: JSON of the body.
      request_id: Value of its header `x-request-id`; empty if it has none.
      retry_after_s: Seconds to wait according to its header `retry-after`; None without one.
    """

    status: int
    body: bytes
    request_id: str = ""
    retry_after_s: float | None = None


@runtime_checkable
class BatchBackend(Protocol):
    """Responds to lines. Its coroutines run in one event loop."""

    @property
    def concurrency(self) -> int:
        """Number of lines to send at the same time; known once it has started."""

    async def start(self) -> None:
        """Prepares the backend.

        Raises:
          CommandError: No server can be reached.
          RoostError: The model cannot be loaded.
        """

    async def send(self, line: BatchLine) -> LineResponse:
        """Returns the response to a line.

        Raises:
          NoResponseError: No response arrived. Sending the line again may succeed.
          CommandError: No further line will get a response.
        """

    async def close(self) -> None:
        """Releases the backend's resources."""
