"""A contestant: a process that loads once, runs commands, and is suspended while another one is timed."""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol import ANSWERS


class ContestantError(Exception):
    """The contestant did not start, failed, or has exited. The message is one line."""


class Contestant:
    """A process in its own process group, with all of its children. It runs from its creation on.

    Args:
      command: Program with its arguments.
      wanted: Model to load; see `protocol`.
      environment: Additional environment variables.
      log: File for its output. The process runs in the file's folder, since in a checkout some libraries take Roost's
        folders for packages.
    """

    def __init__(
        self, command: Sequence[str], wanted: Mapping[str, Any], environment: Mapping[str, str], log: Path
    ) -> None:
        self._log = log
        answers, theirs = os.pipe()
        self._answers = os.fdopen(answers)
        try:
            with log.open("w") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    text=True,
                    cwd=log.parent,
                    env={**os.environ, **environment, ANSWERS: str(theirs)},
                    pass_fds=[theirs],
                    start_new_session=True,
                )
        finally:
            os.close(theirs)
        self._wanted = wanted

    def load(self, seconds: float) -> Any:
        """Waits until the contestant is ready, and returns the facts that it reports.

        Raises:
          ContestantError: It failed, or took too long.
        """
        return self._exchange(self._wanted, seconds)

    def do(self, command: str, seconds: float, **arguments: Any) -> Any:
        """Runs a command and returns its result.

        Raises:
          ContestantError: It failed, or took too long.
        """
        return self._exchange({"do": command, **arguments}, seconds)

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def pause(self) -> None:
        """Suspends the process and its children."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resumes after `pause`."""
        self._signal(signal.SIGCONT)

    def memory(self) -> Mapping[str, int]:
        """Returns the bytes of the whole group: the current memory, and the sum of the processes' peaks."""
        found = [status_of(pid) for pid in group(self._process.pid)]
        return {
            "resident_bytes": sum(status.get("VmRSS", 0) for status in found),
            "peak_bytes": sum(status.get("VmHWM", 0) for status in found),
        }

    def close(self) -> None:
        """Ends the process and all of its children."""
        self.go_on()
        for pipe in (self._process.stdin, self._answers):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _exchange(self, message: Mapping[str, Any], seconds: float) -> Any:
        watch = threading.Timer(seconds, self._signal, [signal.SIGKILL])
        watch.start()
        try:
            line = self._ask(json.dumps(message))
        finally:
            watch.cancel()
        if not line:
            raise ContestantError(self._end(seconds))
        answer = json.loads(line)
        if "error" in answer:
            raise ContestantError(answer["error"])
        return answer["result"]

    def _ask(self, line: str) -> str:
        """Sends a line and reads one; empty if the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            return ""
        return self._answers.readline()

    def _end(self, seconds: float) -> str:
        if self._process.wait() == -signal.SIGKILL:
            return f"was killed: by the system, for want of memory, or by us after {seconds:.0f} s"
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"ended with status {self._process.wait()}: {lines[-1][:160] if lines else 'without a word'}"


def group(leader: int) -> Iterator[int]:
    """Returns all processes of a process group, if the system reports them."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader:
            yield int(folder.name)


def status_of(pid: int) -> Mapping[str, int]:
    """Returns sizes in bytes by the system's names."""
    found = {}
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, _, value = line.partition(":")
        words = value.split()
        if words[1:] == ["kB"]:
            found[name] = int(words[0]) * 1024
    return found
