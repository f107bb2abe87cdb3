"""Maximum number of connections, which depends on the settings, the slots, and the limit of open files."""

import resource
from dataclasses import dataclass
from typing import Final

from ..http.connection import MAX_ADMIN_CONNECTIONS, RESERVED_CONNECTIONS
from ..settings import Settings

SPARE_CONNECTIONS: Final = 4096
"""Number of connections in addition to those of running and waiting requests, for idle clients, uploads, and followed
responses."""

_RESERVED_FILES: Final = RESERVED_CONNECTIONS + MAX_ADMIN_CONNECTIONS + RESERVED_CONNECTIONS + 1024
"""Number of files for other uses: connections beyond the limits, grammars' pipes, caches and devices."""


@dataclass(frozen=True, slots=True)
class ConnectionLimit:
    """Maximum number of connections of the public port with a request.

    Attributes:
      wanted: Number of connections that the settings request.
      max_files: Maximum number of files that the process may open.
    """

    wanted: int
    max_files: int

    @classmethod
    def of(cls, settings: Settings, slots: int, max_files: int) -> "ConnectionLimit":
        """Returns the limit of a server with a number of slots, which is 0 before the model is loaded."""
        return cls(settings.max_connections or slots + settings.max_queue + SPARE_CONNECTIONS, max_files)

    @property
    def number(self) -> int:
        """Number of connections."""
        return min(self.wanted, self.max_files - min(_RESERVED_FILES, self.max_files // 2))

    @property
    def warning(self) -> str | None:
        """Advice for a process whose limit of open files is too low; None if it is high enough."""
        if self.number == self.wanted:
            return None
        return (
            f"the process may open {self.max_files} files, which is enough for {self.number} connections, not "
            f"{self.wanted}: raise the limit (ulimit -n) to {self.wanted + _RESERVED_FILES}"
        )


def raise_file_limit() -> int:
    """Raises the process's limit of open files to the system's maximum, and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # macOS reports an infinite limit, and refuses to set it
        return soft
    return hard if hard != resource.RLIM_INFINITY else 2**31
