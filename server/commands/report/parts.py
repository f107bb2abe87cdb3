"""Parts of a report. Each runs in a separate process, so that a crash or hang does not affect the others."""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
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
      about: What its tables show.
    """

    name: str
    module: str
    title: str
    limit_s: float
    in_quick: bool = True
    about: str = ""

    def run(self, options: ReportOptions) -> Result:
        """Runs the part in this process."""
        run: Callable[[ReportOptions], Result] = getattr(import_module(f".{self.module}", __package__), self.name)
        return run(options)


_KERNELS: Final = (
    "Each kernel ran alone, in the ops that it computes, at the widths of the model. `distance` is how far its results "
    "are from XLA's in float32 on the CPU, by root mean square and at most; `num_unequal` counts elements that have "
    "other bits in a second run; `is_closed` says that NaN in idle rows and large numbers in padding leave the others "
    "as they are."
)
_SPEED: Final = (
    "`host_ms` is the part of a step in which the host does not wait for the device: it plans, dispatches and books "
    "while the device computes. `plan_ms` is `roost plan`'s bound with full windows, `roofline_ms` that of what ran; "
    "both are of the data sheet."
)
_JOB: Final = "32 requests at once, each of 512 prompt and 128 generated tokens, greedy, with `roost serve`'s defaults."
_AHEAD: Final = (
    "`is_found` says whether this device's start found a decode program in `--compile-cache` that another process had "
    "compiled before: for `chip`, without the chip; without a name, on this device."
)
PARTS: Final[Sequence[ReportPart]] = (
    ReportPart("machine", "checks", "The machine", 120.0),
    ReportPart("kernels", "checks", "Kernels against float32", 900.0, about=_KERNELS),
    ReportPart("demo", "checks", "Responses of the demo model", 600.0),
    ReportPart("speed", "speed", "Speed and memory of the engine", 1800.0, about=_SPEED),
    ReportPart("job", "speed", "A job over HTTP", 1200.0, in_quick=False, about=_JOB),
    ReportPart("profile", "speed", "Profile of decode steps", 900.0, in_quick=False),
    ReportPart("ahead", "checks", "A program compiled ahead of time", 900.0, in_quick=False, about=_AHEAD),
)
"""Parts in their order."""


_EXIT_S: Final = 10.0
"""Seconds in which the process of a part that has results may end by itself."""


def say(text: str) -> None:
    """Prints the current activity."""
    print(text, file=sys.stderr, flush=True)


def say_step(text: str) -> None:
    """Prints the current activity of a part."""
    say(f"  {text}")


def run_apart(part: ReportPart, options: ReportOptions) -> dict[str, Any]:
    """Returns the results of a part with its duration; an `error` instead of results if it did not finish."""
    context, began = get_context("spawn"), time.perf_counter()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(part, options, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(part.limit_s):
            found = receiver.recv()
            process.join(_EXIT_S)
        else:
            found = {"error": f"it was ended after {part.limit_s:g} s"}
    except EOFError:
        process.join()
        found = {"error": f"its process ended with status {process.exitcode} and no result"}
    finally:
        process.kill()
        process.join()
    return {**found, "seconds": time.perf_counter() - began}


def _run(part: ReportPart, options: ReportOptions, results: Connection) -> None:
    """Runs a part in this process, which would keep the device if it outlived its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        result = part.run(options)
    except Exception as error:  # the report includes any error
        lines = str(error).strip().splitlines() or [""]
        result = {"error": f"{type(error).__name__}: {lines[0]}"[:500]}
    results.send(result)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
