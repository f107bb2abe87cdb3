"""Options that several commands have."""

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
