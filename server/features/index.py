"""All features. The rest of the server knows a feature only by its name here and its folder."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

NAMES: Final = (
    "responses",
    "batches",
    "anthropic",
    "native",
    "states",
    "usage",
    "chat_page",
)
"""Names of the folders, in the order of `/openapi.json`."""


def modules_of(name: str) -> Iterator[ModuleType]:
    """Yields the modules of a name, such as `command`, of all features that have one.

    Importing `settings` and `command` must be fast, since the command line imports them on every start.
    """
    first = name.partition(".")[0]
    for feature in NAMES:
        if find_spec(f".{feature}.{first}", __package__) is not None:
            yield import_module(f".{feature}.{name}", __package__)
