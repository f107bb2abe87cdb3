"""A contestant as a process that loads once, answers commands, and stands still while another one is timed."""

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
    """It did not start, gave an error, or is gone; the text says why, in a line."""


class Contestant:
    """A process in a group of its own, with all that it starts. It runs from its start on.

    Args:
      command: with its arguments.
      wanted: what it is to load; see `protocol`.
      environment: variables besides ours.
      log: where all goes that it prints. The process runs in the folder of it: in a checkout, some libraries take our
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
        """Waits until it is ready; gives the facts that it tells about itself.

        Raises:
          ContestantError: it cannot be, or took longer.
        """
        return self._exchange(self._wanted, seconds)

    def do(self, command: str, seconds: float, **arguments: Any) -> Any:
        """Has it run a command.

        Raises:
          ContestantError: it could not, or took longer.
        """
        return self._exchange({"do": command, **arguments}, seconds)

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def pause(self) -> None:
        """Takes it and its children off the cores."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undoes `pause`."""
        self._signal(signal.SIGCONT)

    def memory(self) -> Mapping[str, int]:
        """Bytes of the whole group: what it takes now, and the sum of the most that each process ever took."""
        found = [status_of(pid) for pid in group(self._process.pid)]
        return {
            "resident_bytes": sum(status.get("VmRSS", 0) for status in found),
            "peak_bytes": sum(status.get("VmHWM", 0) for status in found),
        }

    def close(self) -> None:
        """Ends it, and all that it has started."""
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
        """Sends a line and reads one; an empty one if there is nobody any more."""
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
    """All processes of a process group, as far as the system tells."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader:
            yield int(folder.name)


def status_of(pid: int) -> Mapping[str, int]:
    """Sizes in bytes, by the system's names for them."""
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
