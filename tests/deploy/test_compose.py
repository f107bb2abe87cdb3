"""The compose file: its schema, what it starts, and the configuration of Prometheus and Grafana beside it."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_tools import program, run
from kubernetes_objects import DEPLOY, alert_rules, dashboard
from serve_settings import settings_of

FOLDER = DEPLOY / "compose"
COMPOSE = FOLDER / "compose.yaml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
PROMTOOL = "on Debian, apt-get install prometheus"
CHECKER = "python3 dev.py test-deploy brings it"
TARGET = re.compile(r"roost:(\d+)")


def mounted(service: str) -> dict[str, Path]:
    """Returns the files that a service sees, by their path in its container."""
    volumes = [volume.split(":") for volume in SERVICES[service]["volumes"]]
    return {target: (FOLDER / source).resolve() for source, target, *_ in volumes if source.startswith(".")}


def read(service: str, target: str) -> Any:
    """Returns the content of a YAML file that a service sees."""
    return yaml.safe_load(mounted(service)[target].read_text())


@pytest.mark.deploy
def test_it_keeps_to_the_schema_of_compose() -> None:
    checker = program("check-jsonschema", CHECKER)
    run(checker, "--builtin-schema", "vendor.compose-spec", str(COMPOSE))


@pytest.mark.deploy
def test_a_fault_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("command:", "comand:", 1))
    checker = program("check-jsonschema", CHECKER)
    assert "comand" in run(checker, "--builtin-schema", "vendor.compose-spec", str(wrong), fails=True)


@pytest.mark.deploy
def test_promtool_finds_no_fault_in_what_prometheus_sees(tmp_path: Path) -> None:
    for target, source in mounted("prometheus").items():
        shutil.copy(source, tmp_path / Path(target).name)
    said = run(program("promtool", PROMTOOL), "check", "config", str(tmp_path / "prometheus.yml"))
    assert f"{len(alert_rules())} rules found" in said


def test_every_mounted_file_is_there() -> None:
    sources = [source for service in ("prometheus", "grafana") for source in mounted(service).values()]
    assert sources
    assert [source for source in sources if not source.is_file()] == []


def test_the_server_takes_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    server = SERVICES["roost"]
    environment = [{"name": name, "value": value} for name, value in server["environment"].items()]
    settings = settings_of({"args": server["command"], "env": environment}, monkeypatch)
    scraped = read("prometheus", "/etc/prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"][0]
    assert [TARGET.fullmatch(target)[1] for target in scraped["targets"]] == [str(settings.admin_port)]
    assert settings.slots == 8
    assert server["build"] == {"context": "../..", "target": "cpu"}
    assert int(server["stop_grace_period"].removesuffix("s")) > settings.drain_lag + settings.drain_timeout


def test_nothing_listens_on_other_machines_addresses() -> None:
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service["ports"])


def test_the_dashboard_finds_the_servers_labels() -> None:
    """Its queries choose by namespace and pod, which only Kubernetes sets by itself."""
    (scraped,) = read("prometheus", "/etc/prometheus/prometheus.yml")["scrape_configs"][0]["static_configs"]
    variables = {each["name"] for each in dashboard()["templating"]["list"]}
    assert variables - {"source"} == set(scraped["labels"])
    (source,) = read("grafana", "/etc/grafana/provisioning/datasources/roost.yaml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = read("grafana", "/etc/grafana/provisioning/dashboards/roost.yaml")["providers"]
    assert f"{provider['options']['path']}/roost.json" in mounted("grafana")
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounted("grafana")
