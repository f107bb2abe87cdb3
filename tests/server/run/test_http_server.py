"""Ports, and clients that connect while the server shuts down."""

import re
import socket
from pathlib import Path

import pytest
from certificates import make_certificate
from fastapi import FastAPI
from roost.engine import ConfigError, RoostError
from roost.server.http.connection import OpenConnections
from roost.server.run.http_server import Listeners, listen, uvicorn_config
from roost.server.settings import load_settings


def test_a_port_in_use_is_refused() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        for option in ("port", "admin_port"):
            reason = rf"^{option} {port}: cannot listen on 127\.0\.0\.1:{port}: Address already in use$"
            with pytest.raises(RoostError, match=reason):
                listen("127.0.0.1", port, option)


def test_a_server_that_does_not_start_leaves_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "roost.sock"
    listeners = Listeners.bind(load_settings({"uds": path, "admin_port": 0}))
    assert path.is_socket()
    listeners.close()
    assert not path.exists()
    assert [each.fileno() for each in listeners.sockets()] == [-1, -1]


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(RoostError, match=r"^host 192\.0\.2\.1: cannot listen on 192\.0\.2\.1:8000"):
        listen("192.0.2.1", 8000)


ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMA==\n-----END ENCRYPTED PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("chain", "key"),
    [
        (None, None),
        (b"x", None),
        ("chain", None),
        ("chain", b"x"),
        ("chain", ENCRYPTED),
        ("chain", "other key"),
        (b"-----BEGIN CERTIFICATE-----", "key"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(
    tmp_path: Path, chain: str | bytes | None, key: str | bytes | None
) -> None:
    (certificate, own), (_, other) = make_certificate(), make_certificate()
    contents, paths = {"chain": certificate, "key": own, "other key": other}, {}
    for name, content in (("chain", chain), ("key", key)):
        paths[name] = tmp_path / f"{name}.pem"
        if content is not None:
            paths[name].write_bytes(contents[content] if isinstance(content, str) else content)
    settings = load_settings({"ssl_certfile": paths["chain"], "ssl_keyfile": None if key is None else paths["key"]})
    files = f"ssl_certfile {paths['chain']}" + ("" if key is None else f" and ssl_keyfile {paths['key']}")
    with pytest.raises(ConfigError, match=f"^{re.escape(files)}: must hold a certificate and its private key"):
        uvicorn_config(FastAPI(), settings, OpenConnections(1))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the system has no socket for both")
def test_the_ipv6_wildcard_accepts_ipv4_too() -> None:
    with listen("::", 0) as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=60).close()
