"""Parts of a report. Each runs in a separate process, so that a crash or hang does not affect the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from .options import ReportOptions

type Result = Mapping[str, Any]
"""Results of a part as JSON values. `problems` has one line for each problem that was found."""

type Run = Callable[[ReportOptions], Result]


@dataclass(frozen=True, slots=True)
class ReportPart:
    """A part of a report.

    Attributes:
      name: Name of its module in `checks` and of its entry in the JSON file.
      title: Heading of its section.
      limit_s: Maximum seconds of the part.
      in_quick: Whether a quick report includes it.
    """

    name: str
    title: str
    limit_s: float
    in_quick: bool = True

    def run(self, options: ReportOptions) -> Result:
        """Runs the part in this process."""
        run: Run = import_module(f".{self.name}", f"{__package__}.checks").run
        return run(options)


PARTS: Final[Sequence[ReportPart]] = (
    ReportPart("machine", "The machine", 120.0),
    ReportPart("kernels", "Kernels against float32", 900.0),
    ReportPart("demo", "Responses of the demo model", 600.0),
    ReportPart("speed", "Speed and memory of the engine", 1800.0),
    ReportPart("job", "A job over HTTP", 1200.0, in_quick=False),
    ReportPart("profile", "Profile of decode steps", 900.0, in_quick=False),
)
"""Parts in their order."""


def find_part(name: str) -> ReportPart:
    """Returns the part of a name."""
    return next(part for part in PARTS if part.name == name)
