"""The unit for systemd, and the settings on its page."""

import configparser
import re
from pathlib import Path

import pytest
from deploy_tools import program, run
from kubernetes_objects import DEPLOY
from roost.server.settings import all_settings, load_settings
from roost.server.terminal.failure import USAGE_STATUS

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
