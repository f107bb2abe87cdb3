"""A job of 32 requests over HTTP, with the server's defaults and the client of `roost bench serve`."""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from ..options import ReportOptions

_START_S: Final = 900.0
_STOP_S: Final = 60.0
_JOB: Final = (
    "--num-prompts",
    "32",
    "--input-len",
    "512",
    "--output-len",
    "128",
    "--ignore-eos",
    "--vocab-size",
    "256",
)


def run(options: ReportOptions) -> Mapping[str, Any]:
    """Returns the client's result of the job.

    Raises:
      RuntimeError: The server did not start, or the client failed.
    """
    with tempfile.TemporaryDirectory() as name, _serving(options, Path(name) / "serve.log") as url:
        file = Path(name) / "job.json"
        command = [
            sys.executable,
            "-P",
            "-m",
            "roost.server",
            "bench",
            "serve",
            "--url",
            url,
            *_JOB,
            "--json",
            str(file),
        ]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if not file.is_file():
            raise RuntimeError(f"roost bench serve ended with status {ended.returncode}")
        result = orjson.loads(file.read_bytes())["result"]
    failed = result["requests"]["failed"]
    return {"result": result, "problems": [f"{failed} of 32 requests failed"] if failed else []}


@contextmanager
def _serving(options: ReportOptions, log: Path) -> Iterator[str]:
    """Yields the address of a server that is ready, and stops it."""
    command = [sys.executable, "-P", "-m", "roost.server", "serve", *_flags(options), "--port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _flags(options: ReportOptions) -> Iterator[str]:
    yield str(options.settings["model"])
    for name, value in options.settings.items():
        if name != "model":
            yield f"--{name.replace('_', '-')}={value}"
    for kernel in options.without_kernels:
        yield f"--without-kernels={kernel}"


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + _START_S
    while (found := re.search(r"^address +(http://\S+)/v1$", log.read_text(), re.MULTILINE)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text().strip().splitlines() or ["no log"])[-1]
            raise RuntimeError(f"the server did not start: {last}")
        time.sleep(0.1)
    return found[1]
