"""How a command fails: one line on stderr, and an exit status."""

import contextlib
import logging
from collections.abc import Iterator

import typer

from ..observability.logging import say
from ..settings import SettingsError


class CommandError(Exception):
    """A command cannot go on; the text is one line that says what is wrong and what to do."""


@contextlib.contextmanager
def errors_in_one_line(usage_status: int = 1, *, as_json: bool | None = None) -> Iterator[None]:
    """What a user can put right is told in a line; all else is a bug and keeps its trace.

    Args:
      usage_status: the exit status where an option or a setting cannot be used.
      as_json: whether the line is an object; None makes it one where log lines are.
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
