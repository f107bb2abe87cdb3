"""Expected loads, and their latency targets."""

import re
from dataclasses import dataclass
from typing import Final

from ..types.errors import ConfigError

_LOAD: Final = re.compile(r"(\d{1,7})\+(\d{1,7})@(\d{1,9}(?:\.\d{1,9})?)/s")
_TIME: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)")


@dataclass(frozen=True, slots=True)
class ExpectedLoad:
    """Requests of one length.

    Attributes:
      prompt_tokens: Tokens of each prompt that the prefix cache does not have.
      output_tokens: Tokens of each reply.
      requests_per_s: Mean of their arrivals, which are independent of each other (a Poisson process).
    """

    prompt_tokens: int
    output_tokens: int
    requests_per_s: float

    @classmethod
    def parse(cls, text: str) -> "ExpectedLoad":
        """Parses a load such as "512+128@40/s".

        Raises:
          ConfigError: The text is not a load.
        """
        found = _LOAD.fullmatch(text)
        load = cls(int(found[1]), int(found[2]), float(found[3])) if found else None
        if load is None or not (load.prompt_tokens and load.output_tokens and load.requests_per_s):
            raise ConfigError(f"load must be IN+OUT@RATE/s, such as 512+128@40/s, not {text!r}")
        return load

    def __str__(self) -> str:
        return f"{self.prompt_tokens}+{self.output_tokens}@{self.requests_per_s:g}/s"


@dataclass(frozen=True, slots=True)
class Targets:
    """99th percentiles that each load must keep.

    Attributes:
      ttft_s: Seconds from the arrival of a request to its first token.
      itl_s: Seconds between two tokens of a request.
    """

    ttft_s: float
    itl_s: float

    @classmethod
    def parse(cls, ttft: str, itl: str) -> "Targets":
        """Parses times such as "1s" and "60ms".

        Raises:
          ConfigError: One of them is not a time.
        """
        return cls(_seconds("ttft-p99", ttft), _seconds("itl-p99", itl))


def _seconds(name: str, text: str) -> float:
    found = _TIME.fullmatch(text)
    seconds = float(found[1]) * (1e-3 if found[2] == "ms" else 1.0) if found else 0.0
    if not seconds:
        raise ConfigError(f"{name} must be a time such as 1s or 60ms, not {text!r}")
    return seconds
