"""How a command ends: by a failure, with one line on stderr and an exit status, or by a signal.

The first SIGINT or SIGTERM begins a shutdown, the second ends the process; SIGHUP reloads files.
`docs/reference/errors.md` lists the exit statuses.
"""

import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Collection, Iterator, Mapping
from difflib import SequenceMatcher
from types import FrameType
from typing import Any, Final, NoReturn

from ..observability.logging import say
from ..settings import SettingsError, flag_name, is_json_wanted

FAILURE_STATUS: Final = 1
"""Exit status of a command that failed."""

USAGE_STATUS: Final = 2
"""Exit status for options and settings that cannot be used, which is also Typer's."""

INTERRUPTED_STATUS: Final = 130
"""Exit status after Ctrl-C."""


class CommandError(Exception):
    """A command cannot continue. The text is one line with the problem and its fix."""


@contextlib.contextmanager
def exit_on_error(*options: str, as_json: bool | None = None) -> Iterator[None]:
    """Prints an error that a user can fix as one line, and exits. Other errors are bugs and keep their trace.

    Args:
      options: Options that errors name without dashes, at their beginning.
      as_json: Whether the line is a JSON object; None follows the format of log lines.
    """
    try:
        yield
    except SettingsError as error:
        _fail(str(error), USAGE_STATUS, as_json)
    except CommandError as error:
        _fail(str(error), FAILURE_STATUS, as_json)
    except Exception as error:
        from ...engine import CheckpointError, ConfigError, RoostError

        if not isinstance(error, RoostError):
            raise
        is_usage = isinstance(error, ConfigError | ValueError) and not isinstance(error, CheckpointError)
        _fail(_with_flag(str(error), options), USAGE_STATUS if is_usage else FAILURE_STATUS, as_json)


def _with_flag(text: str, options: Collection[str]) -> str:
    """Returns an error whose first word, if it is an option, is written as a flag."""
    name, space, rest = text.partition(" ")
    return f"{flag_name(name)}{space}{rest}" if name.replace("-", "_") in options else text


def _fail(text: str, status: int, as_json: bool | None) -> None:
    import typer  # which scripts with the Python API do not need

    say(f"roost: {text}", logging.ERROR, as_json=as_json)
    raise typer.Exit(status) from None


@contextlib.contextmanager
def exit_on_usage_error() -> Iterator[None]:
    """Prints Typer's usage errors as one line, and exits."""
    import typer

    usage_error: type[Any] = typer.BadParameter.__bases__[0]  # which Typer does not export
    try:
        yield
    except usage_error as error:
        if type(error).__name__ != "NoArgsIsHelpError":  # whose help has been printed
            _fail(_usage_line(error), USAGE_STATUS, is_json_wanted(None) or None)
        raise


def _usage_line(error: Any) -> str:
    """Returns Typer's message with the option in front, and how to list all options."""
    text = _unknown_option(error) if hasattr(error, "possibilities") else error.format_message().rstrip(".")
    for pattern, wording in _WORDINGS.items():
        text = re.sub(pattern, wording, text, flags=re.DOTALL)
    if error.ctx is None:
        return " ".join(text.split())
    path = re.sub(r"^\S+", "roost", error.ctx.command_path)
    return f"{' '.join(text.split())}; {path} --help says what it takes"


def _unknown_option(error: Any) -> str:
    """Returns that an option is unknown, and which one was probably meant."""
    names = [name for parameter in error.ctx.command.get_params(error.ctx) for name in parameter.opts]
    meant = _likely_option(error.option_name, [name for name in names if name.startswith("--")])
    return f"{error.option_name} is unknown" + ("" if meant is None else f"; did you mean {meant}?")


_MIN_LIKENESS: Final = 0.75
"""Likeness, as difflib's ratio, from which on an unknown option counts as a misspelt one."""


def _likely_option(written: str, names: Collection[str]) -> str | None:
    """Returns the option that was probably meant by a misspelt one, or by the beginning of one; None without any."""
    letters = written.strip("-")

    def likeness(name: str) -> float:
        whole = name.strip("-")
        return max(SequenceMatcher(None, letters, part).ratio() for part in (whole, whole[: len(letters)]))

    best = max(sorted(names, key=len), key=likeness)
    return best if likeness(best) >= _MIN_LIKENESS else None


_WORDINGS: Final[Mapping[str, str]] = {
    r"^Invalid value for '?([^\s':]+)'?(?: / '.+?')*: (.*)": r"\1: \2",
    r": (?:Value error, )?Input should be (.*?)(?:, unable.*)?$": r" must be \1",
    r": Value error, ": ": ",
    r"must be greater than or equal to ": "must be at least ",
    r"must be less than or equal to ": "must be at most ",
    r"^No such command '([^\s']+)'": r"\1 is unknown",
    r"^Missing argument 'PROMPT.*": "PROMPT is missing: give it in quotes, or - to read it from stdin",
    r"^Missing (?:argument|option) '([^\s']+).*": r"\1 is missing",
    r"^Option '(.+?)' requires an argument": r"\1 needs a value",
    r"^Got unexpected extra argument(?:s|\(s\))? \((.*)\)": r"unexpected argument: \1",
    r"\. Did you mean '([^']+)'.*\?$": r"; did you mean \1?",
}
"""Typer's messages, and their replacements."""


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
