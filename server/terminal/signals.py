"""Handles SIGINT and SIGTERM: the first one begins a shutdown, the second one ends the process at once."""

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn


class Signals:
    """Records the first signal.

    Attributes:
      first: Number of the first signal; None before it. A second signal ends the process.
    """

    def __init__(self) -> None:
        self.first: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self.first is not None:
            exit_now(128 + number)
        self.first = number

    def install(self) -> None:
        """Handles SIGINT and SIGTERM from now on. Call it before anything slow."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)


def exit_now(status: int) -> NoReturn:
    """Ends the process without the interpreter's shutdown.

    A compilation or a device step cannot be interrupted. The interpreter's shutdown would wait for it, or crash it.
    """
    with contextlib.suppress(OSError, RuntimeError):  # a closed pipe, or a signal in the middle of a write
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
