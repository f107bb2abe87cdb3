"""Runs a part in a separate process.

    python -m roost.server.commands.report.process NAME FILE.json PARENT <options.json

writes the part's results, or its error in one line, to the file. On Linux, it ends with the process PARENT.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import orjson

from ..options import ReportOptions
from .parts import ReportPart, find_part

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
