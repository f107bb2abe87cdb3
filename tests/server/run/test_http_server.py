"""Ports, and clients that connect while the server shuts down."""

import asyncio
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import uvicorn
from certificates import make_certificate
from fake_engine import FakeEngine
from fake_server import until
from fastapi import FastAPI
from roost.engine import ConfigError, RoostError
from roost.server.app import create_app
from roost.server.generation.service import Service
from roost.server.http.connection import OpenConnections
from roost.server.run.http_server import HttpServer, Listeners, listen, uvicorn_config
from roost.server.run.lifecycle import Lifecycle, serve_until_stopped
from roost.server.settings import load_settings
from roost.server.terminal.exits import Signals


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


class LateClients(HttpServer):
    """Connects clients just before the port is closed, so that their connections are in the system's backlog."""

    def __init__(self, service: Service, url: Callable[[], tuple[str, int]]) -> None:
        config = uvicorn.Config(create_app(service), lifespan="off", log_config=None)
        super().__init__(config, Signals())
        self.clients: list[socket.socket] = []
        self._url = url

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for _ in range(20):
            client = socket.create_connection(self._url(), timeout=60)
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: roost\r\ncontent-length: 0\r\n\r\n")
            self.clients.append(client)
        await super().shutdown(sockets)


@pytest.mark.parametrize("is_ready", [True, False])
async def test_clients_that_connect_during_shutdown_get_a_response(
    engine: FakeEngine, service: Service, monkeypatch: pytest.MonkeyPatch, is_ready: bool
) -> None:
    """Clients get one while the model is loading, too."""
    monkeypatch.setattr("roost.server.run.http_server._LAST_REQUEST_TIMEOUT_S", 60.0)
    if not is_ready:
        engine.ready.clear()
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    server, signals = LateClients(service, lambda: address), Signals()
    announced = asyncio.Event()
    lifecycle = Lifecycle(service, signals, load_settings({"drain_timeout": 5.0}), announced.set)
    running = asyncio.create_task(serve_until_stopped(lifecycle, server, [listener]))
    await (announced.wait() if is_ready else until(lambda: server.started))
    signals.first = signal.SIGINT
    async with asyncio.timeout(60):
        assert await running is None
    for client in server.clients:
        with client:
            answer = await asyncio.to_thread(client.recv, 65536)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"shutting_down" in answer
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)
