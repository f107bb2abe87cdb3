"""How the process ends: by a signal, in good order; by a second one, or out of a step that is stuck, at once."""

import contextlib
import os
import sys
from types import FrameType
from typing import NoReturn


class Signals:
    """What was asked for from outside. A handler for signals, to be installed before anything slow is done.

    Attributes:
      first: the number of the signal that came first; the second one ends the process.
    """

    def __init__(self) -> None:
        self.first: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None:
            leave_now(128 + number)
        self.first = number


def leave_now(status: int) -> NoReturn:
    """Ends the process here and now. A compilation or a device step cannot be interrupted, and the interpreter's usual
    end would wait for it, or pull the floor from under it."""
    with contextlib.suppress(OSError, RuntimeError):  # nobody reads, or the signal came in the middle of a line
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
