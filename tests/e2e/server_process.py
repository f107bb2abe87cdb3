"""The `roost` command as a process."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx
import pytest
from shared_programs import compiled_once

if TYPE_CHECKING:
    from click.testing import Result

API_KEY = "sesame"
MODEL = "tiny-random"
SLOTS, MAX_QUEUE = 4, 8

SHAPES = ("--slots", str(SLOTS), "--prefill-chunk", "128")
"""Options for few program shapes, of one row and of several; all shapes take a minute to compile. Servers of one model
with these options share compiled programs, see `tests/conftest.py`.
"""

SIMULATED = ("--simulate", "v5e")
"""Options of servers that load no model."""

PROGRAM = ("-m", "roost.server")


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
      url: Address without `/v1`.
      log: File that receives stderr.
    """

    process: subprocess.Popen[str]
    url: str
    log: Path

    def ends(self, seconds: float = 120) -> int:
        """Waits for the end of the process and returns its exit status."""
        return self.process.wait(timeout=seconds)


def start(
    *arguments: str,
    stderr: IO[str] | int = subprocess.PIPE,
    stdin: int | None = None,
    program: Sequence[str] = PROGRAM,
    wrapper: Sequence[str] = (),
    **environment: Any,
) -> subprocess.Popen[str]:
    """Starts `roost` as a user does.

    Args:
      program: Program to run instead.
      wrapper: Command that runs the program.
    """
    python = os.environ.get("ROOST_PYTHON", sys.executable)  # the clients' environments have no Roost
    command = [*wrapper, python, *program, *arguments]
    environment = {"ROOST_DRAIN_LAG": "0", **os.environ, **environment}
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)


def run_here(*arguments: str, text: str = "", **environment: Any) -> "Result":
    """Runs `roost` in this process, for commands that end by themselves: another one would import JAX again.

    Args:
      text: Its input.
    """
    from cache_settings import restored  # here, since the clients' environments have no Roost
    from roost.server.commands.main import app
    from typer.testing import CliRunner

    with restored():
        return CliRunner().invoke(app, arguments, input=text, env=environment)


@contextmanager
def launched(
    *arguments: str,
    program: Sequence[str] = PROGRAM,
    wrapper: Sequence[str] = (),
    programs: str = "",
    port: int = 0,
    **environment: Any,
) -> Iterator[ServerProcess]:
    """Yields a server that is ready, and kills it afterwards if it still runs.

    Args:
      port: Port to listen on; 0 for any free one.
      programs: Name of its compiled programs, if other servers have the same; see `compiled_once`.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "stderr"
        with ExitStack() as stack:
            with compiled_once(programs) if programs else nullcontext():
                with log.open("w") as stderr:
                    arguments = ("serve", *arguments, "--port", str(port))
                    process = start(*arguments, stderr=stderr, program=program, wrapper=wrapper, **environment)
                stack.callback(process.communicate)
                stack.callback(process.kill)
                address = _wait_for_address(process, log)
            yield ServerProcess(process, address, log)


@contextmanager
def serving(
    *arguments: str, wrapper: Sequence[str] = (), programs: str = "", **environment: Any
) -> Iterator[ServerProcess]:
    """Yields a server that is ready, and checks that it exits cleanly on SIGTERM; see `launched`."""
    with launched(*arguments, wrapper=wrapper, programs=programs, **environment) as server:
        yield server
        server.process.send_signal(signal.SIGTERM)
        status = server.ends()
        written = server.log.read_text()
        assert status == 0, written
        assert "Traceback" not in written, written


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def respond(server: ServerProcess, **fields: Any) -> httpx.Response:
    """Asks for a short response, which servers with a store keep."""
    body = {"input": "hi", "max_output_tokens": 2, "ignore_eos": True, **fields}
    return httpx.post(f"{server.url}/v1/responses", json=body, timeout=60)


def metric(server: ServerProcess, name: str) -> float:
    """Returns the value of the first metric whose name and labels begin so."""
    page = httpx.get(f"{server.url}/metrics", timeout=60).text
    return float(next(line.split()[-1] for line in page.splitlines() if line.startswith(name)))


def wait_for_line(server: ServerProcess, text: str, seconds: float = 240) -> None:
    """Waits until the server has written a text to stderr."""
    deadline = time.monotonic() + seconds
    while text not in server.log.read_text():
        if server.process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the server did not write {text!r}:\n{server.log.read_text()}")
        time.sleep(0.1)


def _wait_for_address(process: subprocess.Popen[str], log: Path, seconds: float = 240) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"^address +(https?://\S+)/v1$", log.read_text(), re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text()}")
