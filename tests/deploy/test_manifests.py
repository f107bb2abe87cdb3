"""The manifests as they are committed, against the server that they start; nothing but files is needed."""

from pathlib import Path
from typing import Any

import pytest
from kubernetes_objects import (
    DEPLOY,
    GROUPS,
    PRESETS,
    committed,
    container,
    dashboard,
    expressions,
    metric_names,
    one,
    pod,
    pod_templates,
)
from prometheus_client.parser import text_string_to_metric_families
from roost.engine import CacheStats, EngineStats, Request, SamplingParams
from roost.server.assembly.service import engine_config
from roost.server.feature import load_features
from roost.server.http.health import router
from roost.server.observability.metrics import Metrics, store_rows
from roost.server.observability.request_metrics import RowCollector
from roost.server.run.lifecycle import STOP_TIMEOUT_S
from roost.server.settings import Settings
from serve_settings import settings_of

STATS = EngineStats(
    num_waiting=0,
    num_running=0,
    slots=1,
    prompt_tokens=0,
    generated_tokens=0,
    steps=0,
    compiles_since_ready=0,
    restore_seconds=0.0,
    cache=CacheStats(budget=0, num_bytes=0, snapshots=0, queries=0, hits=0, hit_tokens=0, evictions=0),
)


@pytest.fixture(params=PRESETS)
def manifest(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return committed(request.param)


@pytest.fixture
def settings(manifest: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Settings:
    return settings_of(container(manifest), monkeypatch)


def test_every_preset_is_there() -> None:
    assert sorted(path.stem for path in (DEPLOY / "presets").iterdir()) == sorted(PRESETS)
    assert sorted(path.name for path in (DEPLOY / "manifests").iterdir()) == sorted(PRESETS)


def test_the_server_understands_its_arguments(manifest: list[dict[str, Any]], settings: Settings) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(manifest)["ports"]}
    assert ports == {"http": settings.port, "metrics": settings.admin_port}
    assert settings.host == "0.0.0.0"
    assert settings.state_cache_gib is not None  # `auto` looks at the node, and not at the container's limit
    assert settings.slots is not None or container(manifest)["resources"]["limits"].keys() != {"memory"}


def test_probes_ask_for_what_is_served_on_their_port(manifest: list[dict[str, Any]]) -> None:
    probes = {name: container(manifest)[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: get["path"] for name, get in probes.items()} == {
        "startup": "/health/ready",
        "readiness": "/health/ready",
        "liveness": "/health",
    }
    assert {get["path"] for get in probes.values()} <= {getattr(route, "path", "") for route in router.routes}
    assert {get["port"] for get in probes.values()} == {"metrics"}, (
        "clients could keep the kubelet out of their own port"
    )


def test_a_start_may_take_long(manifest: list[dict[str, Any]]) -> None:
    probe = container(manifest)["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= 600


def test_the_drain_is_over_before_the_kill(manifest: list[dict[str, Any]], settings: Settings) -> None:
    before = container(manifest)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert settings.drain_lag < settings.drain_timeout
    assert before + settings.drain_timeout + 2 * STOP_TIMEOUT_S < pod(manifest)["terminationGracePeriodSeconds"]


def test_what_is_written_to_is_a_volume(manifest: list[dict[str, Any]], settings: Settings) -> None:
    here, spec = container(manifest), pod(manifest)
    mounts = {mount["mountPath"]: mount["name"] for mount in here["volumeMounts"]}
    variables = {each["name"]: each.get("value") for each in here["env"]}
    assert here["securityContext"]["readOnlyRootFilesystem"]
    assert set(mounts.values()) == {volume["name"] for volume in spec["volumes"]}
    assert {"/tmp", variables["XDG_CACHE_HOME"]} <= set(mounts)


def test_compiled_programs_are_in_a_folder_that_the_server_makes(settings: Settings, manifest: Any) -> None:
    """It refuses one that others may write to, as they may to the root of an emptyDir."""
    mounts = {mount["mountPath"] for mount in container(manifest)["volumeMounts"]}
    assert isinstance(settings.compile_cache, Path)
    assert str(settings.compile_cache.parent) in mounts
    assert str(settings.compile_cache) not in mounts


def test_containers_are_nobody_special(manifest: list[dict[str, Any]]) -> None:
    security = container(manifest)["securityContext"]
    assert pod(manifest)["securityContext"]["runAsNonRoot"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert not pod(manifest)["automountServiceAccountToken"]


@pytest.mark.parametrize(
    ("preset", "accelerator", "topology", "chips"),
    [
        ("tpu-v5e-1x1", "tpu-v5-lite-podslice", "1x1", "1"),
        ("tpu-v5e-2x2", "tpu-v5-lite-podslice", "2x2", "4"),
        ("tpu-v5e-2x4-multi-host", "tpu-v5-lite-podslice", "2x4", "4"),
        ("tpu-v6e-1x1", "tpu-v6e-slice", "1x1", "1"),
        ("tpu-v6e-2x2", "tpu-v6e-slice", "2x2", "4"),
    ],
)
def test_tpus_are_asked_for_as_gke_wants_it(preset: str, accelerator: str, topology: str, chips: str) -> None:
    for template in pod_templates(committed(preset)):
        (only,) = template["spec"]["containers"]
        assert only["resources"]["requests"]["google.com/tpu"] == only["resources"]["limits"]["google.com/tpu"] == chips
        assert template["spec"]["nodeSelector"] == {
            "cloud.google.com/gke-tpu-accelerator": accelerator,
            "cloud.google.com/gke-tpu-topology": topology,
        }


def test_all_chips_are_used(manifest: list[dict[str, Any]], settings: Settings) -> None:
    chips = int(container(manifest)["resources"]["limits"].get("google.com/tpu", 1))
    assert (engine_config(settings).shards is None) == (chips * settings.num_hosts > 1)


def test_selectors_find_the_pods(manifest: list[dict[str, Any]]) -> None:
    """Requests and scrapes go to those that serve; what keeps Pods safe is for all of them."""
    serving, *following = (template["metadata"]["labels"].items() for template in pod_templates(manifest))
    selectors = [each["spec"]["selector"] for each in manifest if each["kind"] in ("Service", "PodMonitoring")]
    for selector in (each.get("matchLabels", each) for each in selectors):
        assert selector.items() <= serving
        assert not any(selector.items() <= labels for labels in following)
    for selector in (
        one("PodDisruptionBudget", manifest)["spec"]["selector"]["matchLabels"],
        one("NetworkPolicy", manifest)["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert all(selector.items() <= labels for labels in (serving, *following))


# --- several hosts


@pytest.fixture(params=GROUPS)
def group(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return committed(request.param)


def test_hosts_find_each_other_and_run_the_same(group: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides on programs is the same for all; only the leader has what is for clients."""
    leader, follower = (template["spec"]["containers"][0] for template in pod_templates(group))
    configs = [engine_config(settings_of(each, monkeypatch, index)) for index, each in enumerate((leader, follower))]
    hosts = [config.hosts for config in configs]
    assert [(each.leader, each.count, each.index) for each in hosts if each] == [
        ("roost-0.roost-0.default", 2, 0),
        ("roost-0.roost-0.default", 2, 1),
    ]
    assert {each.port for each in hosts if each} == {8482}
    assert len({(c.slots, c.prefill_chunk, c.dtype, c.quantize, c.shards, c.compile_cache) for c in configs}) == 1
    assert leader["args"][1] == follower["args"][1]
    assert leader["env"] == follower["env"]
    assert not follower.keys() & {"ports", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle"}


def test_a_group_is_one_slice_and_starts_again_as_one(group: list[dict[str, Any]]) -> None:
    made = one("LeaderWorkerSet", group)
    assert made["metadata"]["annotations"] == {
        "leaderworkerset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    template = made["spec"]["leaderWorkerTemplate"]
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    rows, columns = pod(group)["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert int(rows) * int(columns) == 4 * template["size"]
    assert made["spec"]["networkConfig"] == {"subdomainPolicy": "UniquePerReplica"}
    services = {each["metadata"]["name"] for each in group if each["kind"] == "Service"}
    assert made["metadata"]["name"] in services  # so the set must not want a Service of this name


def test_a_follower_goes_on_for_as_long_as_its_leader(group: list[dict[str, Any]]) -> None:
    assert len({template["spec"]["terminationGracePeriodSeconds"] for template in pod_templates(group)}) == 1


def test_hosts_are_reached_by_their_own_kind_only(group: list[dict[str, Any]]) -> None:
    """A rule either names a port, which only those that serve have, or is for Pods of this release."""
    spec = one("NetworkPolicy", group)["spec"]
    own = [{"podSelector": spec["podSelector"]}]
    free = [rule for rule in spec["ingress"] if "ports" not in rule]
    assert free == [{"from": own}]
    assert {port["port"] for rule in spec["ingress"] if "ports" in rule for port in rule["ports"]} == {
        "http",
        "metrics",
    }
    assert {"to": own} in spec["egress"]


# --- dashboard and alerts


def test_the_page_forwards_the_port_of_the_service() -> None:
    services = {each["metadata"]["name"]: each for each in committed("cpu") if each["kind"] == "Service"}
    (port,) = (each["port"] for each in services["roost"]["spec"]["ports"])
    page = (DEPLOY.parent / "docs" / "how-to" / "kubernetes.md").read_text()
    assert f"kubectl port-forward service/roost 8000:{port}\n" in page


def told_by_the_server() -> set[str]:
    metrics = Metrics(lambda: STATS, tenants=("TENANT",))
    metrics.reloads.record_certificate("tls.crt", 1.0)
    metrics.http.count("/v1/completions", "POST", 200)
    metrics.requests.track([Request("a", (1,), SamplingParams(), tenant="TENANT")])[0].end()
    metrics.registry.register(RowCollector(lambda: store_rows({"responses": True})))
    for collector in (each for feature in load_features() for each in feature.unused_collectors()):
        metrics.registry.register(collector)
    families = text_string_to_metric_families(metrics.page().decode())
    return {sample.name for family in families for sample in family.samples}


def test_alerts_and_the_dashboard_ask_for_metrics_that_there_are() -> None:
    asked = set().union(*map(metric_names, expressions()))
    assert len(asked) > 15
    assert asked <= told_by_the_server()


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum(rate(roost_x_total{reason="error"}[5m])) > 0.01 * sum by (le) (roost_y)', {"roost_x_total", "roost_y"}),
        ("histogram_quantile(0.95, sum by (le) (rate(roost_z_bucket[1m])))", {"roost_z_bucket"}),
        ("absent(other_metric)", {"other_metric"}),
    ],
)
def test_metrics_of_an_expression(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names


def test_the_dashboards_panels_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len({panel["id"] for panel in panels}) == len(places) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
