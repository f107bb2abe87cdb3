"""The Dockerfile, without building it."""

import re
import ssl
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from certificates import make_certificate
from deploy_tools import load, program, run
from kubernetes_objects import DEPLOY, PRESETS, committed, container, pod
from roost.server.http.health import router

ROOT = DEPLOY.parent
HEALTHCHECK = DEPLOY / "healthcheck.py"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.mark.deploy
def test_hadolint_finds_no_fault() -> None:
    run(program("hadolint", "python3 dev.py test-deploy brings it"), str(ROOT / "Dockerfile"))


def test_images_are_those_of_the_manifests() -> None:
    targets = set(re.findall(r"^FROM runtime AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert {container(committed(preset))["image"].rpartition("-")[2] for preset in PRESETS} == targets


def test_the_user_is_that_of_the_manifests() -> None:
    users = {pod(committed(preset))["securityContext"]["runAsUser"] for preset in PRESETS}
    assert re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE) == [str(user) for user in users]


def test_any_user_of_group_0_may_write_to_the_cache() -> None:
    """OpenShift's users are of that group, and have no entry that names a home."""
    assert re.search(r"install --directory .*--group=root --mode=0775 /cache$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^ENV .*\bHOME=/tmp\b", DOCKERFILE, re.MULTILINE)


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
@pytest.mark.parametrize("secured", [False, True], ids=["http", "https"])
def test_health_is_liveness_on_the_servers_port(status: int, is_healthy: bool, secured: bool, tmp_path: Path) -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        words = ["roost", "serve", "demo", "--port", str(server.server_port)]
        if secured:
            (tmp_path / "pair").write_bytes(b"".join(make_certificate()))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "pair")
            server.socket = context.wrap_socket(server.socket, server_side=True)
            words += [f"--ssl-certfile={tmp_path / 'pair'}"]
        (tmp_path / "cmdline").write_text("\0".join(words) + "\0")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        ended = subprocess.run([sys.executable, HEALTHCHECK, tmp_path / "cmdline"], capture_output=True)
        thread.join()
    assert (ended.returncode == 0) == is_healthy
    assert asked == ["/health"]
    assert asked[0] in {getattr(route, "path", "") for route in router.routes}


def test_the_images_health_check_follows_flags_variables_and_the_config_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (port,) = re.findall(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)
    address = load("healthcheck").address
    assert address("roost\0serve\0") == f"http://127.0.0.1:{port}/health"
    config = tmp_path / "roost.toml"
    config.write_text("port = 7000\nslots = 4\n")
    assert address(f"roost\0serve\0--config\0{config}\0") == "http://127.0.0.1:7000/health"
    monkeypatch.setenv("ROOST_CONFIG", str(config))
    assert address("roost\0serve\0") == "http://127.0.0.1:7000/health"
    monkeypatch.setenv("ROOST_PORT", "9000")
    monkeypatch.setenv("ROOST_SSL_CERTFILE", "/etc/tls.crt")
    assert address("roost\0serve\0") == "https://127.0.0.1:9000/health"
    assert address("roost\0serve\0--port=1\0--admin-port\0" + "7\0--port\0" + "2\0") == "https://127.0.0.1:2/health"


def test_all_is_installed_by_hashes() -> None:
    locks = set(re.findall(r"-r (requirements/[\w.]+)", DOCKERFILE))
    assert len(locks) == 5
    assert all("--hash=sha256:" in (ROOT / lock).read_text() for lock in locks)
    for line in re.findall(r"pip install (.*)", DOCKERFILE):
        assert line.startswith(("--no-deps --require-hashes", "--no-deps --no-build-isolation ."))


def test_the_build_is_shown_all_that_is_shipped() -> None:
    shown = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {"configs", "engine", "kernels", "server", "setup.py"}
    own = {"__init__.py", *project["tool"]["setuptools"]["package-data"]["roost"]}
    licences = {Path(name).parts[0] for name in project["project"]["license-files"]}
    assert {*rooms, *own, *licences, project["project"]["readme"], "requirements"} <= shown
    assert set(re.findall(r"^COPY (\S+\.py) ", DOCKERFILE, re.MULTILINE)) <= shown
