"""Real Prometheus, and its promtool (Debian: `apt-get install prometheus`), on a running server.

Tests are skipped if it is not installed, unless DEMAND_PROMETHEUS is set.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ports import free_port
from server_process import API_KEY, SLOTS, ServerProcess

NAMES = ("prometheus", "promtool")
MISSING = [name for name in NAMES if shutil.which(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("DEMAND_PROMETHEUS"),
    reason=f"{' and '.join(MISSING)} not installed (Debian: apt-get install prometheus)",
)


@pytest.fixture(scope="module")
def page(server: ServerProcess) -> str:
    """Returns the metrics after some requests."""
    headers = {"authorization": f"Bearer {API_KEY}"}
    for body in ({"prompt": "a", "max_tokens": 3, "n": 2}, {"prompt": [4, 5], "max_tokens": 1}, {"prompt": 1}):
        whole = {**body, "ignore_eos": True}
        httpx.post(f"{server.url}/v1/completions", json=whole, headers=headers, timeout=60)
    return httpx.get(f"{server.url}/metrics", timeout=60).text


def check(page: str) -> str:
    """Returns promtool's complaints about a page."""
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_promtool_has_no_complaints(page: str) -> None:
    ours = "".join(f"{line}\n" for line in page.splitlines() if "vllm:" not in line)
    assert check(ours) == ""


def test_promtool_complains_only_about_vllms_names(page: str) -> None:
    theirs = "".join(f"{line}\n" for line in page.splitlines() if "vllm:" in line)
    complaints = check(theirs).splitlines()
    assert complaints
    known = (
        "should not contain ':'",
        "no help text",
        'iteration_tokens_total non-counter metrics should not have "_total"',
    )
    assert all(any(each in line for each in known) for line in complaints), complaints


@pytest.fixture(scope="module")
def prometheus(server: ServerProcess, page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Yields a Prometheus that scrapes the server every two seconds."""
    folder = tmp_path_factory.mktemp("prometheus")
    target = server.url.removeprefix("http://")
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 2s, scrape_timeout: 2s}\n"
        f"scrape_configs: [{{job_name: roost, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    address = f"127.0.0.1:{free_port()}"
    options = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    log = (folder / "log").open("w")
    process = subprocess.Popen(["prometheus", *options, f"--web.listen-address={address}"], stderr=log, stdout=log)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
            _wait_until_up(client, folder / "log")
            yield client
    finally:
        process.terminate()
        process.wait(120)
        log.close()


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/api/v1/query", params={"query": query}).json()
    return answer["data"]["result"]


def _wait_until_up(client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if any(each["value"][1] == "1" for each in ask(client, "up")):
                return
        except (httpx.HTTPError, KeyError, ValueError):
            pass  # it does not listen yet
        time.sleep(0.2)
    pytest.fail(f"prometheus did not scrape the server:\n{log.read_text()}")


def wait_until[T](look: Callable[[], T], is_enough: Callable[[T], bool], seconds: float = 60) -> T:
    """Looks again while it is not enough: on a busy machine a scrape may take too long, and the next one does not."""
    deadline = time.monotonic() + seconds
    while not is_enough(found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def test_prometheus_scrapes_the_server(prometheus: httpx.Client) -> None:
    def last() -> tuple[str, str]:
        (target,) = prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
        return target["health"], target["lastError"]

    assert wait_until(last, lambda found: found == ("up", "")) == ("up", "")


@pytest.mark.parametrize(
    ("query", "least"),
    [
        ("roost_slots", SLOTS),
        ("roost_compiles_since_ready_total + 1", 1),
        ("roost_requests_total{reason='length'}", 3),
        ("sum(roost_requests_total)", 3),
        ("roost_tenant_generation_tokens_total{tenant='default'}", 7),
        ("histogram_quantile(0.5, roost_time_to_first_token_seconds_bucket)", 0),
        ("roost_request_queue_time_seconds_count", 3),
        ("vllm:num_requests_waiting + 1", 1),
        ("vllm:kv_cache_usage_perc + 1", 1),
        ("vllm:cache_config_info{block_size='64'}", 1),
        ("vllm:request_success_total{finished_reason='length'}", 3),
        ("vllm:e2e_request_latency_seconds_count", 3),
        ("vllm:request_params_n_sum", 3),
    ],
)
def test_scraped_metrics_can_be_queried(prometheus: httpx.Client, query: str, least: float) -> None:
    (sample,) = wait_until(lambda: ask(prometheus, query), bool)
    assert float(sample["value"][1]) >= least
