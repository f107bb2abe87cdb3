"""Reads lines: with editing and history on a terminal, plain lines from a pipe."""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Final

import platformdirs

_QUOTE: Final = '"""'
PROMPT: Final = ">>> "
_CONTINUATION: Final = "... "
_MAX_HISTORY: Final = 1000
"""Maximum number of lines in the history file."""

type ReadLine = Callable[[str], str]
"""Shows a prompt and returns a line without its end. Raises EOFError at the end of the input."""


def read_message(read_line: ReadLine) -> str | None:
    '''Reads a message: a line, or several lines between """ and """. The end of the input also ends quotes.

    Returns:
      The message, or None at the end of the input.
    '''
    try:
        line = read_line(PROMPT)
    except EOFError:
        return None
    if not line.startswith(_QUOTE):
        return line
    lines = [line.removeprefix(_QUOTE)]
    with contextlib.suppress(EOFError):
        while not lines[-1].rstrip().endswith(_QUOTE):
            lines.append(read_line(_CONTINUATION))
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTE)
    return "\n".join(lines).strip("\n")


def line_reader() -> ReadLine:
    """Returns the reader of this process's stdin."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _TerminalLines(history_file())
    return _read_plain_line


def history_file() -> Path:
    """Returns the path of the history."""
    return platformdirs.user_state_path("roost", appauthor=False) / "chat_history"


def _read_plain_line(prompt: str) -> str:
    if sys.stdin.isatty():  # stdout is a pipe, where a prompt would not be seen
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


class _TerminalLines:
    """Reads lines with `input`, and with readline if Python has it.

    Each line is written to the history file immediately. Errors of the file are ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._readline: ModuleType | None = None
        with contextlib.suppress(ImportError):  # Windows has none
            import readline

            self._readline = readline
            readline.set_history_length(_MAX_HISTORY)
            with contextlib.suppress(OSError):
                self._open_history()
                readline.read_history_file(path)

    def __call__(self, prompt: str) -> str:
        line = input(prompt)
        if line.strip() and self._readline is not None:
            with contextlib.suppress(OSError):
                self._open_history()
                if hasattr(self._readline, "append_history_file"):
                    self._readline.append_history_file(1, self._path)
                else:
                    self._readline.write_history_file(self._path)
        return line

    def _open_history(self) -> None:
        """Creates the file so that only its owner can read it."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
