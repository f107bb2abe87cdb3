"""Hosts of a PostgreSQL URL. The primary is found behind poolers, too.

libpq trusts the server status that is reported when a session begins. PgBouncer repeats an old report: after a
failover, libpq would take the standby for the primary, and refuse the primary. This module therefore queries each
server.
"""

import socket
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

_PRIMARY: Final = ("read-write", "primary")
"""Values of `target_session_attrs` that only a primary has."""


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """Returns a connection to the first host of a URL, or to its primary if the URL requests it.

    Args:
      options: Further parameters of the connection, which override the URL's.

    Raises:
      psycopg.OperationalError: No host can be used.
    """
    parameters = conninfo_to_dict(url)
    if parameters.get("target_session_attrs") not in _PRIMARY:
        return psycopg.connect(url, **options)
    del parameters["target_session_attrs"]
    reasons: list[str] = []
    for each in _addresses(parameters):
        try:
            return _connect_to_primary(**{**each, **options})
        except psycopg.Error as error:
            reasons.append(str(error))
    raise psycopg.OperationalError("; ".join(reasons))


def _connect_to_primary(**parameters: Any) -> psycopg.Connection[Any]:
    connection = psycopg.connect(**parameters)
    try:
        if connection.execute("SHOW transaction_read_only").fetchall() == [("off",)]:
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    raise psycopg.OperationalError(f"{parameters.get('host')} port {parameters.get('port')} is read-only")


def _addresses(parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the parameters of each host, and of each address of a host's name."""
    hosts, given, ports = (str(parameters.get(name) or "").split(",") for name in ("host", "hostaddr", "port"))
    ports = ports * max(len(hosts), len(given)) if len(ports) == 1 else ports
    for host, address, port in zip_longest(hosts, given, ports, fillvalue=""):
        each = {**parameters, "host": host, "hostaddr": address, "port": port}
        if address or not host or host.startswith("/"):
            yield each
        else:
            yield from ({**each, "hostaddr": found} for found in _resolved(host))


def _resolved(name: str) -> list[str]:
    """Returns the addresses of a name, or the name itself if it cannot be resolved, which the driver then reports."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return [""]
    return [str(each[4][0]) for each in found]
