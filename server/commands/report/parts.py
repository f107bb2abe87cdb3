"""Parts of a report. Each runs in a separate process, so that a crash or hang does not affect the others.

    python -m roost.server.commands.report.parts NAME FILE.json PARENT <options.json

writes the part's results, or its error in one line, to the file. On Linux, it ends with the process PARENT.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import orjson

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
    ReportPart("ahead", "checks", "A program compiled ahead of time", 900.0, in_quick=False),
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


_SET_SIGNAL_OF_PARENT_END: Final = 1
"""Number of the operation PR_SET_PDEATHSIG of Linux's prctl."""


def run_apart(part: ReportPart, options: ReportOptions, file: Path) -> dict[str, Any]:
    """Returns the results of a part with its duration; an `error` instead of results if it did not finish.

    Args:
      part: The part.
      options: Options of the report.
      file: File for the result, which must not exist.
    """
    command = [sys.executable, "-P", "-m", __spec__.name, part.name, str(file), str(os.getpid())]
    began = time.perf_counter()
    try:
        ended = subprocess.run(command, input=options.as_json(), timeout=part.limit_s, check=False)
        found = _read(file, f"its process ended with status {ended.returncode} and no result")
    except subprocess.TimeoutExpired:
        found = _read(file, f"it was ended after {part.limit_s:g} s")
    return {**found, "seconds": time.perf_counter() - began}


def _read(file: Path, failure: str) -> dict[str, Any]:
    if not file.is_file():
        return {"error": failure}
    return orjson.loads(file.read_bytes())


def main(name: str, file: Path, parent: int) -> None:
    """Runs a part in this process, which would keep the device if it outlived its parent."""
    options = ReportOptions.from_json(sys.stdin.buffer.read())
    _end_with(parent)
    try:
        result = find_part(name).run(options)
    except Exception as error:  # the report includes any error
        lines = str(error).strip().splitlines() or [""]
        result = {"error": f"{type(error).__name__}: {lines[0]}"[:500]}
    file.write_bytes(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY))


def _end_with(parent: int) -> None:
    """Ends this process if its parent has ended, and has Linux end it when the parent does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_SIGNAL_OF_PARENT_END, int(signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit("the report has ended")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
