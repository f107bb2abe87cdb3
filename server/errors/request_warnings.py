"""Warnings about parts of a request that were dropped or ignored.

A response header reports them, and so does the body on request.
"""

import urllib.parse
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Final

HEADER: Final = "x-roost-warnings"
MAX_WARNINGS: Final = 16
MAX_LENGTH: Final = 60
"""Maximum characters of one warning."""

request_warnings: Final[ContextVar[list[str]]] = ContextVar("request_warnings")
"""Warnings of the current HTTP request, in order."""


def warn(text: str) -> None:
    """Adds a warning, unless it is a duplicate or there are `MAX_WARNINGS` already. Long warnings are truncated."""
    warnings, text = request_warnings.get([]), text[:MAX_LENGTH]
    if text not in warnings and len(warnings) < MAX_WARNINGS:
        warnings.append(text)


def warn_all(texts: Iterable[str]) -> None:
    """Adds several warnings."""
    for text in texts:
        warn(text)


def header_value(warnings: Sequence[str]) -> str:
    """Returns the header's value: percent-encoded, separated by commas."""
    return ", ".join(urllib.parse.quote(text, safe=" ()=?") for text in warnings)
