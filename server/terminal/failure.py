"""Failure of a command: one line on stderr, and an exit status."""

import contextlib
import logging
import signal
from collections.abc import Iterator, Mapping
from typing import Final

import typer

from ..observability.logging import say
from ..settings import SettingsError

FAILURE_STATUS: Final = 1
"""Exit status of a command that failed."""

USAGE_STATUS: Final = 2
"""Exit status for options that cannot be used, which is Click's too."""

INTERRUPTED_STATUS: Final = 130
"""Exit status after Ctrl-C."""

EXIT_STATUSES: Final[Mapping[int, str]] = {
    0: "The command is done. `roost serve` was stopped by a signal, and has drained.",
    FAILURE_STATUS: "The command failed, and the last line on stderr says why and what to do. `roost serve` ends so if "
    "the value of a setting or a checkpoint cannot be used and if the engine fails, `roost bench serve` if no request "
    "completed.",
    USAGE_STATUS: "A flag or an argument is unknown or missing, or not of its type. `roost bench` ends so for each "
    "option that cannot be used.",
    INTERRUPTED_STATUS: "Ctrl-C ended the command, or a second one ended `roost serve` before it had drained.",
    128 + signal.SIGTERM: "A second signal, SIGTERM, ended `roost serve` before it had drained.",
}
"""Exit statuses of all commands, and what they mean. `docs/reference/errors.md` is written from them."""


class CommandError(Exception):
    """A command cannot continue; the text is one line that says what is wrong and what to do."""


@contextlib.contextmanager
def exit_on_error(usage_status: int = FAILURE_STATUS, *, as_json: bool | None = None) -> Iterator[None]:
    """Prints an error that a user can fix as one line, and exits. Other errors are bugs and keep their trace.

    Args:
      usage_status: Exit status if an option or a setting cannot be used.
      as_json: Whether the line is a JSON object; None follows the format of log lines.
    """
    try:
        yield
    except SettingsError as error:
        _fail(error, usage_status, as_json)
    except CommandError as error:
        _fail(error, FAILURE_STATUS, as_json)
    except Exception as error:
        from ...engine import RoostError

        if not isinstance(error, RoostError):
            raise
        _fail(error, FAILURE_STATUS, as_json)


def _fail(error: Exception, status: int, as_json: bool | None) -> None:
    say(f"roost: {error}", logging.ERROR, as_json=as_json)
    raise typer.Exit(status) from None
