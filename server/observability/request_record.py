"""One request of the engine, from its arrival to its end: when what happened, for metrics, spans and answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, runtime_checkable

from ...engine import QueueFullError, QueueTimeoutError, Request, RequestTimeoutError, TokenOutput

REASONS: Final = ("stop", "length", "abort", "rejected", "timeout", "error")
"""How requests end."""


@dataclass(frozen=True, slots=True)
class Times:
    """When a request came, when its prompt began to be read, when its first output came, and when the last one so far;
    seconds of one clock."""

    arrived: float
    started: float
    first: float
    last: float


NEVER: Final = Times(0.0, 0.0, 0.0, 0.0)


@runtime_checkable
class Observer(Protocol):
    """Somebody who wants to know of requests as they go on."""

    def tokens(self, record: "RequestRecord", count: int, gap_s: float) -> None:
        """So many tokens have come together, so long after the last ones or, if they are the first, the arrival."""

    def ended(self, record: "RequestRecord") -> None:
        """`record.reason` says how."""


class RequestRecord:
    """Filled in by whoever runs the request. It is left with the reason told to `finished`, else with what the
    exception says.

    Attributes:
      request: the engine's.
      arrived: all times are seconds of one clock, which only goes forward; by default `time.monotonic`.
      started: when its prompt began to be read; None before that.
      first_token, last_token: None while there is none.
      num_tokens: so far.
      detokenize_s: spent on making text of them.
      reason: one of `REASONS`, at the end.
      has_finished: whether it ended by itself, with all that it wanted to say.
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
        """The engine has given something; text is made of it from now on."""
        self._now = self._clock()
        self.started = output.started_at if self.started is None else self.started

    def tokens(self, count: int) -> None:
        """Books tokens that came together, now that they are text."""
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
            observer.tokens(self, count, now - last)
        self.last_token = now
        self.num_tokens += count

    @property
    def times(self) -> Times:
        """Up to the last output; there must have been one."""
        assert self._first_output is not None
        started = self._first_output if self.started is None else self.started
        return Times(self.arrived, started, self._first_output, self._now)

    @property
    def ended(self) -> float:
        """When, at the end."""
        return self._now

    def finished(self, reason: str) -> None:
        self.reason, self.has_finished = reason, True

    def __enter__(self) -> "RequestRecord":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._now = self._clock()
        self.reason = self.reason or _reason(error)
        for observer in self._observers:
            observer.ended(self)


def _reason(error: BaseException | None) -> str:
    """Why a request ended that did not finish: closing its stream is what a client that goes away does."""
    match error:
        case QueueFullError():
            return "rejected"
        case QueueTimeoutError() | RequestTimeoutError():
            return "timeout"
        case Exception():
            return "error"
        case _:
            return "abort"
