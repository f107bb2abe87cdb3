"""Latency objectives, and the requests that meet them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ....settings import SettingsError
from ..latency import RequestTrace, percentile

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
