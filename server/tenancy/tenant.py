"""On whose behalf code runs: the name of the API key that a request came with."""

from contextvars import ContextVar
from typing import Final

tenant: Final[ContextVar[str]] = ContextVar("tenant", default="")
"""Everybody is "" where there are no keys."""
