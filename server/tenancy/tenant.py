"""The tenant on whose behalf code runs: the owner of the request's API key."""

from contextvars import ContextVar
from typing import Final

tenant: Final[ContextVar[str]] = ContextVar("tenant", default="")
"""Name of the current request's tenant; "" for all requests if the server has no keys."""
