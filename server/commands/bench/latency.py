"""Latencies of single requests, their distribution over many, and the objectives that they meet."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from ...settings import SettingsError


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """Times of one request, in seconds of one clock, as a client or the driver of an engine sees them.

    Attributes:
      sent_s: Time when the request was sent; connecting comes after.
      token_times_s: Time of each piece of the response, which may hold one token or several.
      end_s: Time when the response was complete, or had failed.
      prompt_tokens, output_tokens: Numbers of tokens as the server counts them; None if it does not report them.
      last_s: Time when the last token was reported, if that is after the last piece: the token may have no text.
      failure: Reason why the response is not complete, worded so that equal failures can be counted; None if it is.
      lag_s: Seconds by which the client sent the request later than planned.
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
        """Inter-token latencies: times from one piece to the next."""
        return [after - before for before, after in pairwise(self.token_times_s)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; unlike the gaps it counts every token of a piece."""
        if not self.token_times_s or self.output_tokens is None or self.output_tokens < 2:
            return None
        last_s = self.token_times_s[-1] if self.last_s is None else self.last_s
        return (last_s - self.token_times_s[0]) / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float:
        """Time from sending to the end."""
        return self.end_s - self.sent_s


def latencies_ms(traces: Iterable[RequestTrace]) -> dict[str, Any]:
    """Returns distributions over requests, or over gaps for `itl_ms`, in milliseconds."""
    traces = list(traces)
    return {
        "ttft_ms": in_ms(_known(traces, lambda trace: trace.ttft_s)),
        "tpot_ms": in_ms(_known(traces, lambda trace: trace.tpot_s)),
        "itl_ms": in_ms(gap for trace in traces for gap in trace.gaps_s),
        "e2e_ms": in_ms(trace.e2e_s for trace in traces),
    }


def _known(traces: Iterable[RequestTrace], time: Callable[[RequestTrace], float | None]) -> list[float]:
    return [seconds for trace in traces if (seconds := time(trace)) is not None]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Summary of many values, in their unit."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Distribution | None":
        """Returns the summary of values; None if there are none."""
        ordered = sorted(values)
        if not ordered:
            return None
        p50, p90, p95, p99 = (percentile(ordered, percent) for percent in (50, 90, 95, 99))
        mean = math.fsum(ordered) / len(ordered)
        return cls(len(ordered), mean, ordered[0], p50, p90, p95, p99, ordered[-1])


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Returns a percentile, interpolated between two values as numpy does by default.

    Args:
      ordered: At least one value, in rising order.
      percent: Percentile from 0 to 100.
    """
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def in_ms(seconds: Iterable[float]) -> dict[str, Any] | None:
    """Returns the distribution of times in milliseconds, from times in seconds; None if the list is empty."""
    found = Distribution.of(value * 1e3 for value in seconds)
    return None if found is None else asdict(found)


def median_of(results: Sequence[Any]) -> Any:
    """Returns the median of each number over results of the same form. Results that are None are skipped."""
    given = [result for result in results if result is not None]
    if not given:
        return None
    if isinstance(given[0], Mapping):
        return {name: median_of([result[name] for result in given]) for name in given[0]}
    return statistics.median(given)


_TIMES: Final = ("ttft", "tpot", "itl", "e2e")


@dataclass(frozen=True, slots=True)
class Objective:
    """Maximum latencies of a request.

    Attributes:
      limits_ms: Limits by name. `ttft` and `e2e` are defined in `RequestTrace`; `tpot` is the mean time per token after
        the first, and `itl` the 99th percentile of the request's inter-token latencies.
    """

    limits_ms: Mapping[str, float]

    def __str__(self) -> str:
        return " ".join(f"{name}:{limit:g}" for name, limit in self.limits_ms.items())

    @classmethod
    def parse(cls, option: str, words: Sequence[str]) -> "Objective | None":
        """Parses `ttft:500 itl:50`; returns None for an empty list.

        Raises:
          SettingsError: The text is not such a list.
        """
        limits = dict(_parse_limit(option, word) for text in words for word in text.replace(",", " ").split())
        return cls(limits) if limits else None

    def is_met_by(self, trace: RequestTrace) -> bool:
        """Returns whether a request succeeded within every limit. An unknown time counts as within its limit."""
        if trace.failure is not None:
            return False
        gaps = sorted(trace.gaps_s)
        times = {
            "ttft": trace.ttft_s,
            "tpot": trace.tpot_s,
            "itl": percentile(gaps, 99) if gaps else None,
            "e2e": trace.e2e_s,
        }
        return all((times[name] or 0.0) * 1e3 <= limit for name, limit in self.limits_ms.items())


def _parse_limit(option: str, word: str) -> tuple[str, float]:
    name, _, number = word.partition(":")
    name = "e2e" if name == "e2el" else name
    try:
        limit = float(number)
    except ValueError:
        limit = 0.0
    if name not in _TIMES or not 0 < limit < float("inf"):
        raise SettingsError(f"{option} {word!r}: give limits in ms such as ttft:500; names are {', '.join(_TIMES)}")
    return name, limit
