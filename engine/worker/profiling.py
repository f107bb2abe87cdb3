"""Profiles of the host and the devices by JAX's profiler, for xprof or Perfetto."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Operation(NamedTuple):
    """An operation of a device, or of a CPU's threads.

    Attributes:
      name: The compiler's name of it.
      seconds: Total time.
      num_runs: Number of times that it ran.
    """

    name: str
    seconds: float
    num_runs: int


class Profile(NamedTuple):
    """Summary of a profile of the device.

    Attributes:
      operations: The longest operations, the longest first.
      busy_seconds: Total time of all operations; None for a CPU, whose threads work side by side.
    """

    operations: Sequence[Operation]
    busy_seconds: float | None


def record_profile(folder: Path, seconds: float) -> None:
    """Records a profile; one at a time per process.

    Args:
      folder: Folder for the files.
      seconds: Duration of the profile, for which the call blocks.
    """
    with profiled(folder):
        time.sleep(seconds)


@contextmanager
def profiled(folder: Path) -> Iterator[None]:
    """Records a profile of what happens in the `with` block; see `record_profile`."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a line per Python call would slow down what is measured
    jax.profiler.start_trace(str(folder), profiler_options=options)
    try:
        yield
    finally:
        jax.profiler.stop_trace()


def longest_operations(folder: Path, count: int) -> Profile:
    """Reads the newest profile in a folder.

    Args:
      folder: Folder of `profiled`.
      count: Maximum number of operations.

    Raises:
      FileNotFoundError: The folder has no profile.
    """
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{folder} has no *.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(files[-1])).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:") and _events(plane)]
    seconds, counts = Counter[str](), Counter[str]()
    for event in _events(devices[0]) if devices else _cpu_events(planes):
        seconds[event.name] += event.duration_ns / 1e9
        counts[event.name] += 1
    operations = [Operation(name, total, counts[name]) for name, total in seconds.most_common(count)]
    return Profile(operations, sum(seconds.values()) if devices else None)


def _events(plane: Any) -> list[Any]:
    """Returns the operations of a device, from the line "XLA Ops" of a TPU, or one per stream of a GPU."""
    lines = (line for line in plane.lines if line.name == "XLA Ops" or line.name.startswith("Stream"))
    return [event for line in lines for event in line.events]


def _cpu_events(planes: Sequence[Any]) -> list[Any]:
    """Returns the operations of the threads that compute on a CPU, without events of XLA's runtime around them."""
    lines = (line for plane in planes if plane.name == "/host:CPU" for line in plane.lines if "XLA" in line.name)
    return [event for line in lines for event in line.events if not re.match(r"end: |\w+::", event.name)]
