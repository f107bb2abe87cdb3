"""Ports for programs that cannot choose one themselves."""

import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Range from which Linux takes the ports of outgoing connections, and those of listeners on port 0."""

_LOWEST = 10_000

_given: set[int] = set()


def free_port() -> int:
    """Returns a port of the loopback address that is free at the moment, and that this process was not given before.

    Where the system says which ports it gives to connections, the port is none of these. A connection of another test
    could otherwise take it before the program listens, or while the program is started again.
    """
    ports = range(_LOWEST, _first_ephemeral())
    for port in random.SystemRandom().sample(ports, min(len(ports), 100)):
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports() -> int:
    """Returns the first of two consecutive free ports."""
    while not _is_free((port := free_port()) + 1):
        pass
    return port


def _first_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except OSError:
        return 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
