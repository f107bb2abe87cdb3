"""How a command fails: one line on stderr, and an exit status."""

import contextlib
import sys
from collections.abc import Iterator

import typer

from .settings import SettingsError


class CommandError(Exception):
    """A command cannot go on; the text is one line that says what is wrong and what to do."""


@contextlib.contextmanager
def errors_in_one_line(usage_status: int = 1) -> Iterator[None]:
    """What a user can put right is told in a line; all else is a bug and keeps its trace.

    Args:
      usage_status: the exit status where an option or a setting cannot be used.
    """
    try:
        yield
    except SettingsError as error:
        _fail(error, usage_status)
    except CommandError as error:
        _fail(error, 1)
    except Exception as error:
        from ..engine import RoostError

        if not isinstance(error, RoostError):
            raise
        _fail(error, 1)


def _fail(error: Exception, status: int) -> None:
    print(f"roost: {error}", file=sys.stderr)
    raise typer.Exit(status) from None
