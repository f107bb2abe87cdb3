"""All features. A name here and a folder are all that the rest of the server knows of one."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

NAMES: Final = ("responses", "batches", "anthropic", "native", "states", "chat_page")
"""Names of the folders, in the order of `/openapi.json`."""


def modules_of(name: str) -> Iterator[ModuleType]:
    """Yields the features' modules of a name, such as `command.declaration`, of those features that have one.

    Importing `settings` and `command.declaration` must cost little: the command line does so each time.
    """
    first = name.partition(".")[0]
    for feature in NAMES:
        if find_spec(f".{feature}.{first}", __package__) is not None:
            yield import_module(f".{feature}.{name}", __package__)
