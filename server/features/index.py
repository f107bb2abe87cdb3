"""All features. A name here and a folder are all that the rest of the server knows of one."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import typer

    from ..feature import Feature

NAMES: Final = ("responses", "batches", "anthropic", "native", "states", "chat_page")
"""Names of the folders, in the order of `/openapi.json`."""


@cache
def load_features() -> "tuple[Feature, ...]":
    """Returns the records of all features."""
    return tuple(import_module(f".{name}.feature", __package__).FEATURE for name in NAMES)


def add_commands(app: "typer.Typer") -> None:
    """Adds the features' commands, of which importing costs little: the modules `command.declaration`."""
    for name in NAMES:
        if find_spec(f".{name}.command", __package__) is not None:
            declared: Callable[..., Any] = import_module(f".{name}.command.declaration", __package__).command
            app.command()(declared)
