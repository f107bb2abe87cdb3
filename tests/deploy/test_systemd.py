"""The unit for systemd, and the settings on its page."""

import configparser
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest
from deploy_tools import program, run
from kubernetes_objects import DEPLOY
from ports import free_port
from roost.server.settings import all_settings, load_settings
from roost.server.terminal.exits import USAGE_STATUS

UNIT = DEPLOY / "systemd/roost.service"
PAGE = DEPLOY.parent / "docs/tutorials/tpu-and-gpu.md"


def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string(UNIT.read_text())
    return parser["Service"]


def test_a_reload_is_sighup_and_a_stop_reaches_the_server_alone() -> None:
    assert service()["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert service()["KillMode"] == "mixed"


def test_a_stop_has_time_for_drain_and_evacuation() -> None:
    fields = all_settings().model_fields
    longest_s = fields["drain_timeout"].default + fields["evacuate_seconds"].default + 4
    assert float(service()["TimeoutStopSec"]) > longest_s


def test_a_wrong_setting_is_not_tried_again() -> None:
    assert service()["Restart"] == "on-failure"
    assert service()["RestartPreventExitStatus"] == str(USAGE_STATUS)


def test_the_page_has_settings_for_the_unit(tmp_path: Path) -> None:
    (toml,) = re.findall(r"```toml\n(# /etc/roost/roost\.toml\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert "--config /etc/roost/roost.toml" in service()["ExecStart"]
    (tmp_path / "roost.toml").write_text(toml)
    settings = load_settings({"config": str(tmp_path / "roost.toml")})
    assert settings.store_address.target.startswith(f"/var/lib/{service()['StateDirectory']}/")


@pytest.mark.deploy
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    unit = tmp_path / "roost.service"
    unit.write_text(UNIT.read_text().replace("/opt/roost/bin/roost", "/bin/true"))
    checker = program("systemd-analyze", "on Debian, apt-get install systemd")
    assert "roost.service:" not in run(checker, "verify", str(unit))
    run(checker, "security", "--offline=true", "--threshold=40", str(unit))  # exposure of at most 4.0


BOOT: Final = """
set -e
mount --make-rprivate /
for folder in /run /var/cache /var/lib /etc/systemd/system; do mount -t tmpfs tmpfs $folder; done
mount --bind {units} /usr/lib/systemd/system
umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys
exec env -i container=test PATH=$PATH setpriv --bounding-set -sys_time,-sys_module,-sys_boot \\
    /usr/lib/systemd/systemd --system --unit=roost.service --log-target=null --show-status=no
"""
"""Boots systemd in namespaces of its own with no unit but the server's; the machine's kernel stays as it is."""


@contextmanager
def booted(units: Path) -> Iterator[None]:
    """A systemd whose units are those in a folder."""
    namespaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc", "--cgroup")
    if subprocess.run([*namespaces, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True).returncode:
        pytest.skip("no file systems can be mounted here")
    process = subprocess.Popen([*namespaces, "bash", "-c", BOOT.format(units=units)])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def restrictions(port: int) -> dict[str, str]:
    """Returns what /proc says of the server's process."""
    for path in Path("/proc").glob("[0-9]*"):
        if f"--port\0{port}\0".encode() in (path / "cmdline").read_bytes():
            return dict(line.split(":\t", 1) for line in (path / "status").read_text().splitlines() if ":\t" in line)
    raise AssertionError("there is no such server")


@pytest.mark.deploy
@pytest.mark.timeout(400)
def test_the_demo_answers_under_the_units_restrictions(tmp_path: Path) -> None:
    program("systemd-analyze", "on Debian, apt-get install systemd")
    tmp_path.parent.parent.chmod(0o755)
    port = free_port()
    unit = UNIT.read_text().replace("=roost\nGroup=roost", "=nobody\nGroup=nogroup")
    serve = f"{sys.executable} -P -m roost.server serve demo --port {port} --slots 2"
    unit = unit.replace("/opt/roost/bin/roost serve --config /etc/roost/roost.toml", serve)
    seen = f"ProtectHome=tmpfs\nBindReadOnlyPaths={DEPLOY.parent} {sys.prefix} {sys.base_prefix}"
    (tmp_path / "roost.service").write_text(unit.replace("ProtectHome=yes", seen))
    for name in ("sysinit", "basic", "shutdown", "network-online"):
        (tmp_path / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    with booted(tmp_path), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        deadline = time.monotonic() + 300
        while not is_ready(client):
            assert time.monotonic() < deadline, "the server is not ready"
            time.sleep(0.2)
        body = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}], "temperature": 0}
        assert "Madrid" in client.post("/v1/chat/completions", json=body).text
        found = restrictions(port)
    assert (found["NoNewPrivs"], found["Seccomp"], int(found["CapBnd"], 16)) == ("1", "2", 0)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").is_success
    except httpx.TransportError:
        return False
