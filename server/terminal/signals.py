"""Handles signals: the first SIGINT or SIGTERM begins a shutdown, the second ends the process; SIGHUP reloads files."""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


class Signals:
    """Records signals.

    Attributes:
      first: Number of the first SIGINT or SIGTERM; None before it. A second one ends the process.
      num_reloads: Total number of SIGHUPs, which request a reload of files.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.num_reloads = 0
        self._ends_with_terminal = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if number == signal.SIGHUP and not (self._ends_with_terminal and not _has_terminal()):
            self.num_reloads += 1
            return
        if self.first is not None:
            exit_now(128 + number)
        self.first = number

    def install(self) -> None:
        """Installs the handlers of SIGINT, SIGTERM and SIGHUP. Call it before slow steps.

        SIGHUP also arrives when the process's terminal is closed. That begins a shutdown, unless nohup started the
        process.
        """
        self._ends_with_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self)


def _has_terminal() -> bool:
    """Returns whether the process has a terminal that is still open."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True


def exit_now(status: int) -> NoReturn:
    """Exits the process without the interpreter's shutdown.

    A compilation or a device step cannot be interrupted. The interpreter's shutdown would wait for it, or crash.
    """
    with contextlib.suppress(OSError, RuntimeError):  # a closed pipe, or a signal in the middle of a write
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
