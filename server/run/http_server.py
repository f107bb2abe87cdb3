"""Listens for connections within the limit of open files, and runs uvicorn alongside the lifecycle."""

import asyncio
import base64
import calendar
import ctypes
import errno
import ipaddress
import math
import re
import resource
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp

from ...engine import ConfigError, RoostError
from ..http.connection import MAX_ADMIN_CONNECTIONS, RESERVED_CONNECTIONS, LimitedConnection, OpenConnections
from ..http.origins import TrustedProxies
from ..settings import Settings
from ..terminal.exits import Signals
from .lifecycle import STOP_TIMEOUT_S

_KEEP_ALIVE_S: Final = 75
"""Seconds after which an idle connection is closed. Proxies use shorter timeouts, so that they close first."""

_BACKLOG: Final = 2048
"""Number of connections that wait to be accepted."""

_UDS_MODE: Final = 0o666
"""Permissions of a Unix socket, which are uvicorn's: a proxy has another user."""

_HANDSHAKE_S: Final = 0.1
"""Time for TCP handshakes in progress to complete before a port is closed, in seconds."""

_ACCEPT_TURNS: Final = 10_000
"""Maximum turns of the event loop for that; the process may have no file left for a connection."""

_POLL_INTERVAL_S: Final = 0.02
_REQUEST_POLLS: Final = 50
"""Seconds between two looks whether all connections have sent a request before the server ends, and their number."""

_DROP_SYN: Final = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 2**32 - 1))
"""Socket filter in classic BPF: loads the flags of a TCP header, and drops the packet if SYN is set."""

_SO_ATTACH_FILTER: Final = 26
"""Linux's option, which Python does not name."""

SPARE_CONNECTIONS: Final = 4096
"""Number of connections in addition to one per running or waiting request, for idle clients, uploads, and followed
responses."""

_RESERVED_FILES: Final = RESERVED_CONNECTIONS + MAX_ADMIN_CONNECTIONS + RESERVED_CONNECTIONS + 1024
"""Number of files for other uses: connections beyond the limits, grammars' pipes, caches and devices."""

_CERTIFICATE: Final = re.compile(rb"-----BEGIN (?:\w+ )?CERTIFICATE-----([^-]*)")
_VALIDITY: Final = re.compile(rb"(?:\x17\x0d\d{12}Z|\x18\x0f\d{14}Z)(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)")
"""Validity of a certificate in DER (RFC 5280, 4.1.2.5): two times, each with two or four digits of the year."""


class HttpServer(uvicorn.Server):
    """uvicorn server that leaves signals to the lifecycle, and resets no connection when it ends."""

    def __init__(self, config: uvicorn.Config, signals: Signals) -> None:
        super().__init__(config)
        self._signals = signals

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the ports once all connections that clients have made are accepted, and then the connections.

        The system would reset those that wait to be accepted. Clients that have just connected may send their requests.
        """
        listeners = sockets or []
        await _accept_all(listeners)
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        for _ in range(_REQUEST_POLLS):
            if not self._has_silent:
                break
            await asyncio.sleep(_POLL_INTERVAL_S)
        await super().shutdown()

    @property
    def _has_silent(self) -> bool:
        """Whether a connection has sent no request."""
        connections = self.server_state.connections
        return any(isinstance(connection, LimitedConnection) and connection.is_silent for connection in connections)


async def _accept_all(listeners: Sequence[socket.socket]) -> None:
    """Lets the event loop accept the connections that clients have made, while none is added."""
    poll = select.poll()
    for listener in listeners:
        poll.register(listener, select.POLLIN)
        _refuse_new(listener)
    await asyncio.sleep(_HANDSHAKE_S)
    for _ in range(_ACCEPT_TURNS):
        if not poll.poll(0):
            break
        await asyncio.sleep(0)


def _refuse_new(listener: socket.socket) -> None:
    """Lets the system drop the first packet of new connections. The client's system sends it again after a second, and
    finds that the port is closed. Only Linux can; elsewhere, a connection may be made just before the port closes."""
    if listener.family == socket.AF_UNIX or sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *operation) for operation in _DROP_SYN))
    program = struct.pack("HP", len(_DROP_SYN), ctypes.addressof(code))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def uvicorn_config(app: ASGIApp, settings: Settings, connections: OpenConnections) -> uvicorn.Config:
    """Returns uvicorn's configuration.

    Args:
      connections: Open connections of the server.

    Raises:
      ConfigError: The certificate or its key cannot be used.
    """
    protocol = partial(LimitedConnection, stall_s=settings.stall_timeout, connections=connections)
    config = uvicorn.Config(
        _behind_proxies(app, settings.forwarded_allow_ips),
        http=cast(type[asyncio.Protocol], protocol),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(STOP_TIMEOUT_S),
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    if settings.ssl_certfile is not None:
        _load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings.ssl_certfile, settings.ssl_keyfile)
    config.load()
    return config


def _behind_proxies(app: ASGIApp, addresses: Sequence[str]) -> ASGIApp:
    """Returns an application that trusts the headers of the proxies at these addresses."""
    return cast(ASGIApp, TrustedProxies(cast(Any, app), list(addresses))) if addresses else app


def reload_certificate(config: uvicorn.Config, settings: Settings) -> None:
    """Reads the certificate and its key again. New connections use them; open connections keep the old ones.

    Raises:
      ConfigError: The certificate or its key cannot be used. The server keeps the old ones.
    """
    assert config.ssl is not None
    assert settings.ssl_certfile is not None
    for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), config.ssl):  # a failure may leave half of a pair
        _load_certificate(context, settings.ssl_certfile, settings.ssl_keyfile)


def certificate_expiry(path: Path) -> float:
    """Returns when the first certificate of a PEM file expires, in seconds since 1970; NaN if it cannot be found."""
    found = _CERTIFICATE.search(path.read_bytes())
    times = _VALIDITY.search(base64.b64decode(found[1])) if found else None
    if times is None:
        return math.nan
    digits, form = (times[1], "%y%m%d%H%M%S") if times[1] else (times[2], "%Y%m%d%H%M%S")
    return calendar.timegm(time.strptime(digits.decode(), form))


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Loads a certificate and its key, which may be in the same file.

    Raises:
      ConfigError: They cannot be used.
    """
    try:
        context.load_cert_chain(certificate, key, password=lambda: b"")  # a prompt for a passphrase would block
    except OSError as error:
        files = f"ssl_certfile {certificate} and ssl_keyfile {key}" if key else f"ssl_certfile {certificate}"
        raise ConfigError(
            f"{files}: must hold a certificate and its private key, in PEM and without a passphrase ({error.strerror})"
        ) from None


@dataclass(frozen=True, slots=True)
class Listeners:
    """Bound ports.

    Attributes:
      public: Port of the API.
      admin: Port of metrics and debugging; None serves them on the public one.
      uds: Path of the public port, if that is a Unix socket.
    """

    public: socket.socket
    admin: socket.socket | None
    uds: Path | None

    @classmethod
    def bind(cls, settings: Settings) -> "Listeners":
        """Binds the ports of the settings.

        Raises:
          RoostError: A port is in use, or the address does not belong to this machine.
        """
        public = listen(settings.host, settings.port) if settings.uds is None else listen_on_path(settings.uds)
        admin = None if settings.admin_port is None else listen(settings.host, settings.admin_port, "admin_port")
        return cls(public, admin, settings.uds)

    @property
    def admin_port(self) -> int | None:
        """Number of the admin port. If port 0 was requested, it is the port that the system chose."""
        return None if self.admin is None else int(self.admin.getsockname()[1])

    @property
    def is_on_loopback(self) -> bool:
        """Whether only this machine can connect, and not through a Unix socket, which a proxy stands before."""
        if self.uds is not None:
            return False
        return all(ipaddress.ip_address(listener.getsockname()[0]).is_loopback for listener in self.sockets())

    def url(self, settings: Settings) -> str:
        """Returns the address that clients connect to."""
        if settings.uds is not None:
            return f"unix:{settings.uds}"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "http" if settings.ssl_certfile is None else "https"
        return f"{scheme}://{host}:{self.public.getsockname()[1]}"

    def close(self) -> None:
        """Closes the ports, and removes the Unix socket, if there is one."""
        for listener in self.sockets():
            listener.close()
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)

    def sockets(self) -> list[socket.socket]:
        """Returns the bound sockets."""
        return [self.public] if self.admin is None else [self.public, self.admin]


def listen(host: str, port: int, option: str = "port") -> socket.socket:
    """Binds a port early, so that a port in use is reported before slow steps.

    Args:
      option: Name of the port's setting, for errors.

    Raises:
      RoostError: The port is in use, or the address does not belong to this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        is_dual_stack = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual_stack)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # the rest repeats the address
        named = f"{option} {port}" if error.errno in (errno.EADDRINUSE, errno.EACCES) else f"host {host}"
        raise RoostError(f"{named}: cannot listen on {host}:{port}: {reason}") from None


def listen_on_path(path: Path) -> socket.socket:
    """Binds a Unix socket, and replaces one that a killed server has left. Every user of the machine may connect.

    Raises:
      RoostError: Another server listens on this path, or the socket cannot be created.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _is_in_use(path):
            path.unlink()
        listener.bind(str(path))
        path.chmod(_UDS_MODE)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise RoostError(f"uds {path}: cannot listen there: {error.strerror or error}") from None
    return listener


def _is_in_use(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def connection_limit(settings: Settings, slots: int, max_files: int) -> tuple[int, str]:
    """Returns the maximum number of connections of the public port with a request.

    Args:
      slots: Number of slots, which is 0 before the model is loaded.
      max_files: Maximum number of files that the process may open.

    Returns:
      The number, and advice if the files are too few for what the settings request; empty if they are enough.
    """
    wanted = settings.max_connections or slots + settings.max_queue + SPARE_CONNECTIONS
    possible = max_files - min(_RESERVED_FILES, max_files // 2)
    if wanted <= possible:
        return wanted, ""
    return possible, (
        f"the process may open {max_files} files, which is enough for {possible} connections, not {wanted}: "
        f"raise the limit (ulimit -n) to {wanted + _RESERVED_FILES}"
    )


def raise_file_limit() -> int:
    """Raises the process's limit of open files to the system's maximum, and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # macOS reports an infinite limit, and refuses to set it
        return soft
    return hard if hard != resource.RLIM_INFINITY else 2**31
