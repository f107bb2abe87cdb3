"""Options that several commands share."""

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

ApiKey = Annotated[
    str | None,
    typer.Option(
        help="Key of the server; other users can read it here, but not in ROOST_API_KEY.",
        envvar="ROOST_API_KEY",
        metavar="KEY",
        show_default=False,
    ),
]


def completion(values: Sequence[str]) -> Callable[..., list[str]] | None:
    """Returns the function that completes a value in a shell; None completes it as a path."""
    return (lambda incomplete: [value for value in values if value.startswith(incomplete)]) if values else None
