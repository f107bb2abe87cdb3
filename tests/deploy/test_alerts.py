"""Alerts through promtool, and a real Prometheus that scrapes a real server."""

import json
import ssl
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import make_certificate
from deploy_tools import program, run
from kubernetes_objects import CHART, alert_rules, expressions, metric_names
from ports import free_port

pytestmark = pytest.mark.deploy

HOW = "on Debian, apt-get install prometheus"
ALERTS = CHART / "files/alerts.yaml"
ALERTS_TEST = Path(__file__).parent / "alerts_cases.yaml"


def test_promtool_finds_no_fault_in_the_alerts() -> None:
    run(program("promtool", HOW), "check", "rules", "--lint=all", "--lint-fatal", str(ALERTS))


def test_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    (tmp_path / "alerts.yaml").write_text(ALERTS.read_text())
    (tmp_path / "test.yaml").write_text(ALERTS_TEST.read_text())
    run(program("promtool", HOW), "test", "rules", str(tmp_path / "test.yaml"))


def test_each_alert_is_tested() -> None:
    tests = yaml.safe_load(ALERTS_TEST.read_text())["tests"]
    fired = {each["alertname"] for test in tests for each in test["alert_rule_test"] if each["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alert_rules()}


# --- a real scrape


def get(url: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
        return json.load(answer)["data"]


def wait_until(is_so: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it has taken too long"
        time.sleep(0.2)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """One that scrapes a server every two seconds; gives its address."""
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [
            {
                "job_name": "roost",
                "scheme": "https",
                "tls_config": {"insecure_skip_verify": True},
                "static_configs": [{"targets": [target]}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{free_port()}"
    command = [program("prometheus", HOW), f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={url.removeprefix('http://')}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield url
    finally:
        process.terminate()
        process.wait(120)


def has_scraped(url: str) -> bool:
    try:
        targets = get(f"{url}/api/v1/targets")["activeTargets"]
    except (urllib.error.URLError, ConnectionError):
        return False
    print(targets)  # shown if none succeeds; on a busy machine, one may take too long
    return any(target["health"] == "up" for target in targets)


def complete(url: str) -> None:
    """Sends a request, of which there are metrics then."""
    headers = {"authorization": "Bearer sesame", "content-type": "application/json"}
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, headers)
    urllib.request.urlopen(request, timeout=60, context=ssl._create_unverified_context()).close()


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that has scraped the demo server's metrics, over TLS."""
    from server_process import launched

    program("prometheus", HOW)
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "pair.pem").write_bytes(b"".join(make_certificate(datetime.now(UTC) + timedelta(days=30))))
    options = ("--slots", "2", "--store", f"sqlite:///{folder / 'responses.db'}")
    options += ("--ssl-certfile", str(folder / "pair.pem"))
    with (
        launched("demo", *options, ROOST_API_KEY="sesame") as server,
        prometheus(folder, server.url.removeprefix("https://")) as url,
    ):
        complete(server.url)
        wait_until(lambda: has_scraped(url))
        wait_until(lambda: "http_requests_total" in get(f"{url}/api/v1/label/__name__/values"))
        yield url


def test_prometheus_knows_every_metric_that_is_asked_for(scraped: str) -> None:
    known = set(get(f"{scraped}/api/v1/label/__name__/values"))
    assert set().union(*map(metric_names, expressions())) <= known


def test_prometheus_understands_every_expression(scraped: str) -> None:
    for expression in expressions():
        get(f"{scraped}/api/v1/query", query=expression)


def test_nothing_is_wrong_with_a_server_that_has_just_started(scraped: str) -> None:
    def rules() -> list[dict[str, Any]]:
        return [rule for group in get(f"{scraped}/api/v1/rules")["groups"] for rule in group["rules"]]

    assert {rule["name"] for rule in rules()} == {rule["alert"] for rule in alert_rules()}
    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()))
    wait_until(lambda: not get(f"{scraped}/api/v1/alerts")["alerts"])  # one was pending before the first scrape
