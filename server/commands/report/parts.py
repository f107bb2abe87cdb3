"""Parts of a report. Each runs in a separate process, so that a crash or hang does not affect the others."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from ..options import ReportOptions

type Result = Mapping[str, Any]
"""Results of a part as JSON values. `problems` has one line for each problem that was found."""


@dataclass(frozen=True, slots=True)
class ReportPart:
    """A part of a report.

    Attributes:
      name: Name of its function and of its entry in the JSON file.
      module: Module with the function.
      title: Heading of its section.
      limit_s: Maximum seconds of the part.
      in_quick: Whether a quick report includes it.
    """

    name: str
    module: str
    title: str
    limit_s: float
    in_quick: bool = True

    def run(self, options: ReportOptions) -> Result:
        """Runs the part in this process."""
        run: Callable[[ReportOptions], Result] = getattr(import_module(f".{self.module}", __package__), self.name)
        return run(options)


PARTS: Final[Sequence[ReportPart]] = (
    ReportPart("machine", "checks", "The machine", 120.0),
    ReportPart("kernels", "checks", "Kernels against float32", 900.0),
    ReportPart("demo", "checks", "Responses of the demo model", 600.0),
    ReportPart("speed", "speed", "Speed and memory of the engine", 1800.0),
    ReportPart("job", "speed", "A job over HTTP", 1200.0, in_quick=False),
    ReportPart("profile", "speed", "Profile of decode steps", 900.0, in_quick=False),
)
"""Parts in their order."""


def find_part(name: str) -> ReportPart:
    """Returns the part of a name."""
    return next(part for part in PARTS if part.name == name)


def say(text: str) -> None:
    """Prints the current activity."""
    print(text, file=sys.stderr, flush=True)


def say_step(text: str) -> None:
    """Prints the current activity of a part."""
    say(f"  {text}")
