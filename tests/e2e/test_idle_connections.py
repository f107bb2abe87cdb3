"""Connections that send nothing, to a real server: probes, metrics and requests are still served; and its end."""

import resource
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from server_process import API_KEY, ServerProcess, serving

MAX_CONNECTIONS, RESERVED = 50, 64


@contextmanager
def served(tiny_config: Path, *arguments: str) -> Iterator[tuple[ServerProcess, str]]:
    """Yields a server that needs a key, and the address of its admin port."""
    port = free_port()
    options = ("--simulate", "v5e", "--slots", "8", "--admin-port", str(port), *arguments)
    with serving(f"random:{tiny_config}", *options, ROOST_API_KEY=API_KEY) as server:
        yield server, f"http://127.0.0.1:{port}"


@contextmanager
def idle_connections(count: int, *urls: str) -> Iterator[None]:
    """Holds connections open that send nothing, as many to each of the servers."""
    with ExitStack() as stack:
        for url in urls:
            address = httpx.URL(url)
            for _ in range(count):
                stack.enter_context(socket.create_connection((address.host, address.port or 0), timeout=30))
        yield


def assert_serves(server: ServerProcess, admin: str) -> dict[str, float]:
    """Asks for all that must be served, each on a connection of its own; returns the counts of connections."""
    for url in (server.url, admin):
        for path in ("/health", "/health/ready"):
            assert httpx.get(f"{url}{path}", timeout=30).status_code == 200
    headers = {"authorization": f"Bearer {API_KEY}"}
    body = {"prompt": [5], "max_tokens": 2}
    assert httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=30).status_code == 200
    page = httpx.get(f"{admin}/metrics", timeout=30)
    assert page.status_code == 200
    return {
        f"{sample.name} {sample.labels['port']}": sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
        if sample.name.startswith("roost_connections")
    }


def test_idle_connections_keep_nobody_out(tiny_config: Path) -> None:
    """On both ports there are more than each takes, so that the oldest are closed."""
    count = 4 * RESERVED
    with served(tiny_config, "--max-connections", str(MAX_CONNECTIONS)) as (server, admin):
        with idle_connections(count, server.url, admin):
            counts = assert_serves(server, admin)
            assert counts["roost_connections_limit public"] == MAX_CONNECTIONS
            assert counts["roost_connections public"] <= MAX_CONNECTIONS + RESERVED
            assert counts["roost_connections_dropped_total public"] >= count - MAX_CONNECTIONS - RESERVED
            assert counts["roost_connections_dropped_total admin"] >= count - 2 * RESERVED
            assert counts["roost_connections_refused_total public"] == 0
        assert "may open" not in server.log.read_text()


REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n"


def assert_answered(connection: socket.socket) -> int:
    """Returns the status of the response that comes; one that the server doesn't serve can be retried."""
    head, _, _ = connection.recv(2**16).partition(b"\r\n\r\n")
    status = int(head.split()[1])
    assert status == 200 or (status == 503 and b"\r\nretry-after: " in head), head
    return status


def test_no_connection_is_reset_when_a_server_ends(tiny_config: Path) -> None:
    """Hundreds connect before its signal, and others after it while they can; some send nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with served(tiny_config) as (server, _), ExitStack() as stack:
            url, request = httpx.URL(server.url), REQUEST % API_KEY.encode()

            def connect() -> socket.socket:
                return stack.enter_context(socket.create_connection((url.host, url.port or 0), timeout=60))

            silent = [connect() for _ in range(300)]
            waiting = [connect() for _ in range(400)]
            server.process.send_signal(signal.SIGTERM)
            for connection in waiting:
                connection.sendall(request)
            with suppress(ConnectionRefusedError):
                for _ in range(2000):
                    waiting.append(connect())
                    waiting[-1].sendall(request)
            statuses = Counter(map(assert_answered, [*silent, *waiting]))
            assert statuses[503] >= len(silent)
            assert server.ends() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.robust
def test_five_thousand_idle_connections_keep_nobody_out(tiny_config: Path) -> None:
    """They exceed the limit of a server that chooses it by itself. It raises its own limit of files, which was low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 6500, "the system lets a process open too few files for this test"
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with served(tiny_config) as (server, admin):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            with idle_connections(5000, server.url):
                counts = assert_serves(server, admin)
                assert counts["roost_connections_limit public"] == 8 + 256 + 4096
                assert counts["roost_connections_dropped_total public"] >= 5000 - (8 + 256 + 4096) - RESERVED
                assert counts["roost_connections_refused_total public"] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
