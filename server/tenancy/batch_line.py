"""Whether code runs for a line of a batch, which a replica sends to its own application."""

from contextvars import ContextVar
from typing import Final

SCOPE_KEY: Final = "roost.batch_tenant"
"""Key of an ASGI scope with the tenant of a batch's line. No request from outside can set it."""

is_batch_line: Final[ContextVar[bool]] = ContextVar("is_batch_line", default=False)
"""Whether the current request is a line of a batch, which takes only slots that no other request waits for."""
