"""Failure of a command: one line on stderr, and an exit status."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Final

import typer

from ..observability.logging import say
from ..settings import SettingsError

INTERRUPTED_STATUS: Final = 130
"""Exit status after Ctrl-C."""


class CommandError(Exception):
    """A command cannot continue; the text is one line that says what is wrong and what to do."""


@contextlib.contextmanager
def exit_on_error(usage_status: int = 1, *, as_json: bool | None = None) -> Iterator[None]:
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
        _fail(error, 1, as_json)
    except Exception as error:
        from ...engine import RoostError

        if not isinstance(error, RoostError):
            raise
        _fail(error, 1, as_json)


def _fail(error: Exception, status: int, as_json: bool | None) -> None:
    say(f"roost: {error}", logging.ERROR, as_json=as_json)
    raise typer.Exit(status) from None
