"""Timeline of an engine request, which metrics, traces and responses read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from ...engine import QueueFullError, QueueTimeoutError, Request, RequestTimeoutError, TokenOutput

REASONS: Final = ("stop", "length", "abort", "rejected", "timeout", "error")
"""Reasons for which requests end."""


@dataclass(frozen=True, slots=True)
class Times:
    """Times of a request in seconds of one clock.

    Attributes:
      arrived: Arrival of the request.
      started: Start of prefill.
      first: First output.
      last: Last output so far.
    """

    arrived: float
    started: float
    first: float
    last: float


NEVER: Final = Times(0.0, 0.0, 0.0, 0.0)
"""Times of a request that has not started."""


@runtime_checkable
class Observer(Protocol):
    """Receives the progress of requests."""

    def on_tokens(self, record: "RequestRecord", count: int, gap_s: float) -> None:
        """Called when tokens have been generated, before the record counts them.

        Args:
          record: Record of the request.
          count: Number of tokens that arrived together.
          gap_s: Seconds since the previous tokens, or since the arrival.
        """

    def on_end(self, record: "RequestRecord") -> None:
        """Called when a request has ended; `record.reason` is set."""


class RequestRecord:
    """Timeline of one engine request, as a context manager around its run.

    The reason is the one passed to `finished`, or else follows from the error passed to `end`.

    Attributes:
      request: The engine request.
      arrived: Time of arrival. All times are seconds of one monotonic clock.
      started: Time at which prefill started; None before that.
      first_token: Time of the first token; None before that.
      last_token: Time of the last token so far; None before the first.
      num_tokens: Number of tokens so far.
      detokenize_s: Seconds spent on detokenization.
      reason: One of `REASONS`, once the request has ended.
      has_finished: Whether the request ended with all of its output.
    """

    def __init__(self, request: Request, observers: Sequence[Observer], clock: Callable[[], float]) -> None:
        self.request = request
        self.arrived = self._now = clock()
        self.started: float | None = None
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.num_tokens = 0
        self.detokenize_s = 0.0
        self.reason = ""
        self.has_finished = False
        self._observers = observers
        self._clock = clock
        self._first_output: float | None = None

    def output(self, output: TokenOutput) -> None:
        """Records an output of the engine, whose detokenization starts now."""
        self._now = self._clock()
        self.started = output.started_at if self.started is None else self.started

    def tokens(self, count: int) -> None:
        """Records tokens that arrived together, once they are detokenized."""
        now = self._clock()
        self.detokenize_s += now - self._now
        self._now = now
        if self._first_output is None:
            self._first_output = now
        if not count:
            return
        last = self.arrived if self.last_token is None else self.last_token
        self.first_token = now if self.first_token is None else self.first_token
        for observer in self._observers:
            observer.on_tokens(self, count, now - last)
        self.last_token = now
        self.num_tokens += count

    @property
    def times(self) -> Times:
        """Times up to the last output; requires an output."""
        assert self._first_output is not None
        started = self._first_output if self.started is None else self.started
        return Times(self.arrived, started, self._first_output, self._now)

    @property
    def ended(self) -> float:
        """Time of the end, once the request has ended."""
        return self._now

    def finished(self, reason: str) -> None:
        """Records that the request ended with all of its output."""
        self.reason, self.has_finished = reason, True

    def end(self, error: BaseException | None = None) -> None:
        """Reports the end of the request to the observers.

        Args:
          error: Error that ended it; None if it finished or was aborted.
        """
        self._now = self._clock()
        self.reason = self.reason or _reason(error)
        for observer in self._observers:
            observer.on_end(self)


def _reason(error: BaseException | None) -> str:
    """Returns why a request ended early; a client's disconnect is no `Exception`."""
    match error:
        case QueueFullError():
            return "rejected"
        case QueueTimeoutError() | RequestTimeoutError():
            return "timeout"
        case Exception():
            return "error"
        case _:
            return "abort"
