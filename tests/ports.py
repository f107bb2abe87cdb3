"""Ports for programs that cannot choose one themselves."""

import socket


def free_port() -> int:
    """Returns a port of the loopback address that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
