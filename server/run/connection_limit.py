"""Maximum number of connections, which follows the settings, the slots, and the files that the process may open."""

import resource
from collections.abc import Callable
from typing import Final

from ..http.open_connections import MAX_ADMIN_CONNECTIONS, RESERVED_CONNECTIONS
from ..settings import Settings

SPARE_CONNECTIONS: Final = 4096
"""Number of connections beside those of running and waiting requests: idle ones, uploads, and followed responses."""

_RESERVED_FILES: Final = RESERVED_CONNECTIONS + MAX_ADMIN_CONNECTIONS + RESERVED_CONNECTIONS + 1024
"""Number of files that the limit leaves: reserved connections of both ports, grammars' pipes, caches and devices."""


class ConnectionLimit:
    """Maximum number of connections of the public port with a request.

    Args:
      settings: Settings of the server.
      slots: Returns the number of slots, which is 0 before the model is loaded.
      max_files: Maximum number of files that the process may open.
    """

    def __init__(self, settings: Settings, slots: Callable[[], int], max_files: int) -> None:
        self._settings = settings
        self._slots = slots
        self._max_files = max_files

    def __call__(self) -> int:
        reserved = min(_RESERVED_FILES, self._max_files // 2)
        return min(self._wanted, self._max_files - reserved)

    @property
    def warning(self) -> str | None:
        """Advice for a process that may open too few files; None if it may open enough."""
        if self() == self._wanted:
            return None
        return (
            f"the process may open {self._max_files} files, which is enough for {self()} connections, not "
            f"{self._wanted}: raise the limit (ulimit -n) to {self._wanted + _RESERVED_FILES}"
        )

    @property
    def _wanted(self) -> int:
        return self._settings.max_connections or self._slots() + self._settings.max_queue + SPARE_CONNECTIONS


def raise_file_limit() -> int:
    """Raises the number of files that the process may open as far as the system allows, and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # macOS calls its limit infinite, and refuses that
        return soft
    return hard if hard != resource.RLIM_INFINITY else 2**31
