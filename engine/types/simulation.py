"""Settings of a simulated device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from .errors import ConfigError

SIMULATED: Final = "simulated"
"""Marks everything that a simulated device produced: model ids, states, files and entries of stores."""


class FaultKind(StrEnum):
    """Faults of a simulated device: a step never ends, all take ten times as long, or the device is lost."""

    STUCK = "stuck"
    SLOW = "slow"
    DYING = "dying"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that begins after a number of steps.

    Attributes:
      after: Number of steps before it.
    """

    kind: FaultKind
    after: int

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Parses a fault such as "stuck@1000".

        Raises:
          ValueError: The text is not a fault.
        """
        kind, _, after = text.partition("@")
        if not after.isdecimal():
            raise ValueError("the number of steps is missing")
        return cls(FaultKind(kind), int(after))


@dataclass(frozen=True, slots=True)
class Simulation:
    """A device with the timing of a real one, which runs no model.

    Attributes:
      text: The settings as the user wrote them.
      device: Name of the device whose memory and roofline are used; see `roost.engine.capacity.roofline.DEVICES`.
      efficiency: Share of the roofline's speed that steps reach; None uses the device's, from
        `roost.engine.simulation.durations`.
      step_ms: Milliseconds of a decode step; None uses the roofline's.
      prefill_tokens_per_s: Prompt tokens per second; None uses the roofline's.
      jitter: Maximum relative deviation of a step's duration.
      output_tokens: Mean length of texts, whose lengths have a geometric distribution.
      fault: Fault of the device; None if it has none.
    """

    text: str
    device: str = "v5e"
    efficiency: float | None = None
    step_ms: float | None = None
    prefill_tokens_per_s: float | None = None
    jitter: float = 0.0
    output_tokens: int = 200
    fault: Fault | None = None

    @classmethod
    def parse(cls, text: str) -> "Simulation":
        """Parses settings such as "v6e", "v5e,jitter=0.1" or "step_ms=9.8,prefill_tokens_per_s=40000".

        Raises:
          ConfigError: An option is unknown, or its value is invalid.
        """
        first, *rest = (part.strip() for part in text.split(","))
        if "=" not in first:
            return cls(text, device=first, **dict(map(_option, rest)))
        return cls(text, **dict(map(_option, (first, *rest))))


def _option(part: str) -> tuple[str, Any]:
    """Parses one option.

    Raises:
      ConfigError: The option is unknown, or its value is invalid.
    """
    name, _, value = part.partition("=")
    if name not in _OPTIONS:
        raise ConfigError(f"simulate takes a device and {', '.join(_OPTIONS)}, not {part!r}")
    parse, accepts, expected = _OPTIONS[name]
    try:
        if accepts(parsed := parse(value)):
            return name, parsed
    except ValueError:
        pass
    raise ConfigError(f"simulate takes {name}={expected}, not {part!r}")


_OPTIONS: Final[Mapping[str, tuple[Callable[[str], Any], Callable[[Any], bool], str]]] = {
    "efficiency": (float, lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "step_ms": (float, lambda value: 0 < value < float("inf"), "a positive number"),
    "prefill_tokens_per_s": (float, lambda value: 0 < value < float("inf"), "a positive number"),
    "jitter": (float, lambda value: 0 <= value < 1, "a number from 0, below 1"),
    "output_tokens": (int, lambda value: value >= 1, "a positive integer"),
    "fault": (Fault.parse, lambda _: True, f"{'|'.join(FaultKind)}@STEPS"),
}
"""Options by name: function that parses the value, whether the result is valid, and a description of valid values."""
