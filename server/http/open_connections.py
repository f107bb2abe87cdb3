"""Counts the open connections of each port, and closes idle ones to make room for new ones."""

from collections.abc import Mapping
from typing import Final, Protocol

from ..observability.metrics import ConnectionCounts

MAX_ADMIN_CONNECTIONS: Final = 64
"""Maximum number of connections of the admin port with a request."""

RESERVED_CONNECTIONS: Final = 64
"""Number of connections of a port beyond its limit, for probes and for clients that get a 503."""

_ALWAYS_SERVED: Final = frozenset({b"/health", b"/health/ready", b"/metrics"})
"""Paths of probes, which are served beyond the limit, since a server that does not respond to them is restarted."""


class Droppable(Protocol):
    """A connection."""

    def drop(self) -> None:
        """Closes the connection immediately."""


class PortConnections:
    """Open connections of one port.

    A connection is silent until its first request, busy during each request, and idle afterwards. Probes leave it idle,
    so that they cannot occupy the server. At most `limit` connections are busy, and `RESERVED_CONNECTIONS` more are
    open. Beyond that, a new connection replaces the oldest silent or idle one: otherwise clients that send nothing
    would block all others.

    Attributes:
      limit: Maximum number of busy connections.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._silent: dict[Droppable, None] = {}  # oldest first
        self._idle: dict[Droppable, None] = {}
        self._busy: set[Droppable] = set()
        self._num_dropped = 0
        self._num_refused = 0

    @property
    def counts(self) -> ConnectionCounts:
        """Counts for metrics."""
        num_open = len(self._silent) + len(self._idle) + len(self._busy)
        return ConnectionCounts(num_open, len(self._busy), self.limit, self._num_dropped, self._num_refused)

    def open(self, connection: Droppable) -> bool:
        """Adds a new connection; returns False if the port is full and no other connection can be closed for it."""
        num_open = len(self._silent) + len(self._idle) + len(self._busy)
        has_room = num_open < self.limit + RESERVED_CONNECTIONS or self._drop_oldest()
        self._silent[connection] = None  # without room, too: it is closed for the next one
        self._num_refused += not has_room
        return has_room

    def begin(self, connection: Droppable, path: bytes) -> bool:
        """Makes a connection busy, except for the path of a probe; returns False if too many are busy."""
        if connection in self._busy:
            return True
        is_probe = path in _ALWAYS_SERVED
        if not is_probe and len(self._busy) >= self.limit:
            self._num_refused += 1
            return False
        self.close(connection)
        if is_probe:
            self._idle[connection] = None
        else:
            self._busy.add(connection)
        return True

    def end(self, connection: Droppable) -> None:
        """Makes a busy connection idle."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = None

    def close(self, connection: Droppable) -> None:
        """Removes a connection, if it is still there."""
        self._silent.pop(connection, None)
        self._idle.pop(connection, None)
        self._busy.discard(connection)

    def _drop_oldest(self) -> bool:
        """Closes the oldest connection without a request. Returns False if there is none.

        Silent connections come first, except the latest, whose requests may be on their way.
        """
        waiting = self._silent if len(self._silent) > RESERVED_CONNECTIONS or not self._idle else self._idle
        oldest = next(iter(waiting), None)
        if oldest is None:
            return False
        self.close(oldest)
        self._num_dropped += 1
        oldest.drop()
        return True


class OpenConnections:
    """Open connections of all ports of a server.

    Attributes:
      public: Connections of the public port.

    Args:
      limit: Maximum number of busy connections of the public port.
      admin_port: Number of the admin port, which has a separate limit; None if there is none.
    """

    def __init__(self, limit: int, admin_port: int | None = None) -> None:
        self.public = PortConnections(limit)
        self._admin = PortConnections(MAX_ADMIN_CONNECTIONS)
        self._admin_port = admin_port

    def of(self, port: int | None) -> PortConnections:
        """Returns the connections of a port; None stands for a Unix socket."""
        return self.public if port is None or port != self._admin_port else self._admin

    def counts_by_port(self) -> Mapping[str, ConnectionCounts]:
        """Counts by port: "public", and "admin" if there is one."""
        ports = {"public": self.public} if self._admin_port is None else {"public": self.public, "admin": self._admin}
        return {name: each.counts for name, each in ports.items()}
