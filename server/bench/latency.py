"""What was seen of one request, by a client or beside an engine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .percentiles import in_ms


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """Times are seconds of one clock.

    Attributes:
      sent_s: when the request set out; connecting comes after.
      token_times_s: when a piece of the answer came, be it one token or several.
      end_s: when the answer was complete, or had failed.
      prompt_tokens, output_tokens: as the server counts them; None where it does not tell.
      last_s: when the last token was told of, where that is after the last piece: it may have no text.
      failure: why there is no whole answer, in words that fit others of its kind, too, so that these can be counted.
      lag_s: how much later than planned it set out, for which only the client can be blamed.
    """

    sent_s: float
    token_times_s: Sequence[float]
    end_s: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    last_s: float | None = None
    failure: str | None = None
    lag_s: float = 0.0

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return self.token_times_s[0] - self.sent_s if self.token_times_s else None

    @property
    def gaps_s(self) -> Sequence[float]:
        """Inter-token latencies: from one piece to the next."""
        return [after - before for before, after in pairwise(self.token_times_s)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; unlike the gaps it knows when a piece holds several tokens."""
        if not self.token_times_s or self.output_tokens is None or self.output_tokens < 2:
            return None
        last_s = self.token_times_s[-1] if self.last_s is None else self.last_s
        return (last_s - self.token_times_s[0]) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """From setting out to the end."""
        return self.end_s - self.sent_s


def latencies_ms(traces: Iterable[RequestTrace]) -> dict[str, Any]:
    """Distributions over requests (of `itl_ms`: over gaps), in milliseconds."""
    traces = list(traces)
    return {
        "ttft_ms": in_ms(_known(traces, lambda trace: trace.ttft_s)),
        "tpot_ms": in_ms(_known(traces, lambda trace: trace.tpot_s)),
        "itl_ms": in_ms(gap for trace in traces for gap in trace.gaps_s),
        "e2e_ms": in_ms(trace.e2e_s for trace in traces),
    }


def _known(traces: Iterable[RequestTrace], time: Callable[[RequestTrace], float | None]) -> list[float]:
    return [seconds for trace in traces if (seconds := time(trace)) is not None]
